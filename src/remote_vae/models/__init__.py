"""Real VAEs: the only room that imports diffusers. `families` are plain data and small functions."""
