"""The VAEs of HunyuanImage 2.1 and of its refiner, which was made from a VAE for videos."""

from typing import Final

from remote_vae.core.recipe import Affine, Copies, Rearrange, Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import GRID, UNBATCHED
from remote_vae.models.original_names import LATENT_DIFFUSION, from_latent_diffusion_in_one_row, renamed
from remote_vae.values import Frames

# 64 channels, one latent cell for 32 by 32 pixels.
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

# The refiner's latents have the first frame of a video twice, as pairs of frames in the channels. Its decoder gets the
# one frame that is left when the copy is taken away.
_REFINER: Final = Recipe(
    "hunyuan-image-refiner",
    (Rearrange("b (g c) 1 h w -> b (g c) h w", {"g": 2}), GRID),
    (Affine(("scaling_factor",)), Copies(2), Rearrange("b c h w -> b c 1 h w")),
    patch=2,
    channels=(32,),
    ratio=16,
)
_REFINERS: Final = (
    Model(
        "hunyuan-image-refiner",
        _REFINER,
        "hunyuanvideo-community/HunyuanImage-2.1-Refiner-Diffusers",
        "bfloat16",
        aliases=("hunyuan-image-2.1-refiner",),
    ),
)

FAMILIES: Final = (
    Family(
        "AutoencoderKLHunyuanImage",
        _MODELS,
        stages="hunyuan_image",
        convert=lambda weights, module: from_latent_diffusion_in_one_row(weights),
    ),
    # Its config states a ratio of 4 in time, but no layer of it works in time.
    Family(
        "AutoencoderKLHunyuanImageRefiner",
        _REFINERS,
        frames=lambda module: Frames(),
        convert=lambda weights, module: renamed(weights, LATENT_DIFFUSION),
    ),
)
