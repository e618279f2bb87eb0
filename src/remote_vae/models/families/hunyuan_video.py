"""The VAEs of HunyuanVideo and HunyuanVideo 1.5, causal in time: four frames for a latent frame after the first."""

from dataclasses import replace
from typing import Final

from remote_vae.core.recipe import Affine, Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import VIDEO_LAYOUTS

HUNYUANVIDEO: Final = Recipe("hunyuanvideo", VIDEO_LAYOUTS, (Affine(("scaling_factor",)),), posterior="mode", fps=24)

_MODELS: Final = (
    Model(
        "hunyuanvideo",
        HUNYUANVIDEO,
        "hunyuanvideo-community/HunyuanVideo",
        "float16",
        aliases=("hunyuan", "hunyuan-video", "hv", "framepack", "skyreels-hunyuan"),
    ),
)

# 32 channels, one latent cell for 16 by 16 pixels.
_MODELS_15: Final = (
    Model(
        "hunyuanvideo-1.5",
        replace(HUNYUANVIDEO, name="hunyuanvideo-1.5"),
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
        "bfloat16",
        aliases=("hunyuanvideo1.5",),
    ),
)

FAMILIES: Final = (
    Family("AutoencoderKLHunyuanVideo", _MODELS, tiles=True),
    Family("AutoencoderKLHunyuanVideo15", _MODELS_15, whole_groups=True),
)
