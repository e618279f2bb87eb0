"""The paper: latents to pixels and back, pure torch and einops; `recipe`, `vae_info` and `layout` without torch."""
