"""diffusers' own client with only its URL changed: a picture to a latent and back.

Usage: python examples/with_diffusers.py photo.jpg [URL]
"""

import sys

from diffusers.utils.remote_utils import remote_decode, remote_encode
from PIL import Image

photo = Image.open(sys.argv[1]).convert("RGB")
url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8000"

latent = remote_encode(url, photo)  # without a factor: as the VAE has it
picture = remote_decode(url, latent, do_scaling=False, image_format="png")
picture.save("with_diffusers.png")
print(f"latent {list(latent.shape)}, picture {picture.width}x{picture.height}")
