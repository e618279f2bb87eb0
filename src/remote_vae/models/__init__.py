"""Real VAEs: the only room that imports diffusers. `recipes` and `registry` are plain data."""
