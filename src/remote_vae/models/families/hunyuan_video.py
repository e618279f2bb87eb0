"""The VAE of HunyuanVideo: causal in time, four frames for each latent frame after the first."""

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

FAMILIES: Final = (Family("AutoencoderKLHunyuanVideo", _MODELS, tiles=True),)
