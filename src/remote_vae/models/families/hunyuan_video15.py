"""The VAE of HunyuanVideo 1.5: causal in time, 32 channels, one latent cell for 16 by 16 pixels."""

from typing import Final

from remote_vae.core.recipe import Affine, Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import VIDEO_LAYOUTS

_RECIPE: Final = Recipe("hunyuanvideo-1.5", VIDEO_LAYOUTS, (Affine(("scaling_factor",)),), posterior="mode", fps=24)

_MODELS: Final = (
    Model(
        "hunyuanvideo-1.5",
        _RECIPE,
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
        "bfloat16",
        aliases=("hunyuanvideo1.5",),
    ),
)

FAMILIES: Final = (Family("AutoencoderKLHunyuanVideo15", _MODELS, whole_groups=True),)
