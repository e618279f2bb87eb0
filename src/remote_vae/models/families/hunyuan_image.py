"""The VAE of HunyuanImage 2.1: 64 channels, one latent cell for 32 by 32 pixels."""

from typing import Final

from remote_vae.core.recipe import Affine, Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import GRID, UNBATCHED
from remote_vae.models.original_names import from_latent_diffusion_in_one_row

_RECIPE: Final = Recipe("hunyuan-image-2.1", (GRID, UNBATCHED), (Affine(("scaling_factor",)),), patch=2)

_MODELS: Final = (
    Model(
        "hunyuan-image-2.1",
        _RECIPE,
        "hunyuanvideo-community/HunyuanImage-2.1-Diffusers",
        "bfloat16",
        aliases=("hunyuan-image",),
        config={
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 64,
            "block_out_channels": (128, 256, 512, 512, 1024, 1024),
            "layers_per_block": 2,
            "spatial_compression_ratio": 32,
            "sample_size": 384,
            "scaling_factor": 0.75289,
            "downsample_match_channel": True,
            "upsample_match_channel": True,
        },
    ),
)

FAMILIES: Final = (
    Family(
        "AutoencoderKLHunyuanImage", _MODELS, convert=lambda weights, module: from_latent_diffusion_in_one_row(weights)
    ),
)
