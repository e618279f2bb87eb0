"""The paper: latents to pixels and back, pure torch and einops; `recipe`, `facts` and `layout` without torch."""
