"""The VAE of Qwen-Image: Wan's, made for pictures; each picture is a video of one frame.

Latents are packed in Qwen-Image's pipelines, and have an axis of one frame in its modular ones.
"""

from dataclasses import replace
from typing import Final

from remote_vae.core.recipe import Affine, Rearrange, Recipe
from remote_vae.models.families.wan import from_original_names
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import IMAGE_LAYOUTS, ONE_FRAME

QWEN_IMAGE: Final = Recipe(
    "qwen-image",
    (*IMAGE_LAYOUTS, ONE_FRAME),
    (Affine(("latents_mean", "latents_std")), Rearrange("b c h w -> b c 1 h w")),
    patch=2,
    channels=(16,),
    ratio=8,
)
# The pipelines that edit take the mode of the posterior, and no sample.
EDIT: Final = replace(QWEN_IMAGE, name="qwen-image-edit", posterior="mode")

_MODELS: Final = (
    Model(
        "qwen-image",
        QWEN_IMAGE,
        "Qwen/Qwen-Image",
        "bfloat16",
        aliases=("qwen", "krea2", "anima", "nucleusmoe-image"),
    ),
    Model("qwen-image-edit", EDIT, "Qwen/Qwen-Image-Edit", "bfloat16", aliases=("qwen-image-edit-plus",)),
)

FAMILIES: Final = (
    Family(
        "AutoencoderKLQwenImage",
        _MODELS,
        convert=from_original_names,
        forget=lambda module: module.clear_cache(),
    ),
)
