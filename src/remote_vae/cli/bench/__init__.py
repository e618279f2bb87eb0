"""`remote-vae bench`: what this machine makes of a VAE, and of what one would use instead."""
