"""The VAEs of CogVideoX 1.0 and 1.5. Its latents have their frames before their channels.

An odd number of latent frames gives one frame for the first and four for each other, an even number four for each.
"""

from dataclasses import replace
from typing import Any, Final

from remote_vae.core.recipe import Affine, Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import CHANNELS_FIRST, FRAMES_FIRST_LAYOUTS
from remote_vae.values import FrameRule, Frames

COGVIDEOX: Final = Recipe(
    "cogvideox",
    FRAMES_FIRST_LAYOUTS,
    (CHANNELS_FIRST, Affine(("scaling_factor",))),
    channels=(16,),
    fps=8,
    ratio=8,
)
# The models that continue a picture were trained on latents that are divided by the factor.
IMAGE_TO_VIDEO_15: Final = replace(
    COGVIDEOX,
    name="cogvideox1.5-i2v",
    ops=(CHANNELS_FIRST, Affine(("scaling_factor",), both_ways=True)),
    needs=("invert_scale_latents",),
)


def _frames(module: Any) -> Frames:
    return Frames(int(module.config.temporal_compression_ratio), rule=FrameRule.PAIRS)


_OF_5B: Final = {"scaling_factor": 0.7}
_OF_15: Final = {**_OF_5B, "invert_scale_latents": True}
_MODELS: Final = (
    Model(
        "cogvideox",
        COGVIDEOX,
        "THUDM/CogVideoX-5b",
        "bfloat16",
        aliases=("cogvideox-5b", "cogvideox-5b-i2v", "cogvideox-fun", "consisid"),
        config=_OF_5B,
        preview="taecvx",
    ),
    Model("cogvideox-2b", COGVIDEOX, "THUDM/CogVideoX-2b", "float16", preview="taecvx-2b"),
    Model(
        "cogvideox1.5",
        COGVIDEOX,
        "THUDM/CogVideoX1.5-5B",
        "bfloat16",
        aliases=("cogvideox1.5-5b",),
        config=_OF_15,
        preview="taecvx",
    ),
    Model(
        "cogvideox1.5-i2v", IMAGE_TO_VIDEO_15, "THUDM/CogVideoX1.5-5B-I2V", "bfloat16", config=_OF_15, preview="taecvx"
    ),
)

FAMILIES: Final = (Family("AutoencoderKLCogVideoX", _MODELS, frames=_frames),)
