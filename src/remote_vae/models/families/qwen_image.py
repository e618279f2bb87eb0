"""The VAEs of Qwen-Image, which are made for pictures; each picture is a video of one frame.

Qwen-Image has Wan's. Latents are packed in its pipelines, and have an axis of one frame in its modular ones. The
pictures of Qwen-Image-Layered and Qwen-Image 2.1 have transparency.
"""

from dataclasses import replace
from typing import Final

from remote_vae.core.recipe import Affine, Rearrange, Recipe
from remote_vae.models.families.wan import from_original_names
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import GRID, IMAGE_LAYOUTS, ONE_FRAME, PATCH, UNBATCHED
from remote_vae.values import RGB, RGBA, Frames

_TO_DECODER: Final = (Affine(("latents_mean", "latents_std")), Rearrange("b c h w -> b c 1 h w"))

QWEN_IMAGE: Final = Recipe(
    "qwen-image",
    (*IMAGE_LAYOUTS, ONE_FRAME),
    _TO_DECODER,
    patch=2,
    channels=(16,),
    ratio=8,
)
# The pipelines that edit take the mode of the posterior, and no sample.
EDIT: Final = replace(QWEN_IMAGE, name="qwen-image-edit", posterior="mode")

# Layers of a picture after their composite, packed one after another or on an axis; a latent of one picture goes too.
QWEN_IMAGE_LAYERED: Final = Recipe(
    "qwen-image-layered",
    (
        GRID,
        Rearrange("b (l h w) (c i j) -> (b l) c (h i) (w j)", PATCH),
        Rearrange("b c l h w -> (b l) c h w"),
        UNBATCHED,
    ),
    _TO_DECODER,
    posterior="mode",
    patch=2,
    channels=(16,),
    ratio=8,
    pixel_channels=RGBA,
)
# The tokens of 2.1 are cells, but its pipelines handle 2 by 2 of them as one, so sides are multiples of 32 pixels.
QWEN_IMAGE_21: Final = Recipe(
    "qwen-image-2.1",
    (GRID, Rearrange("b (h w) c -> b c h w"), ONE_FRAME, UNBATCHED),
    _TO_DECODER,
    posterior="mode",
    patch=2,
    channels=(64,),
    ratio=16,
    pixel_channels=RGBA,
)

_MODELS: Final = (
    Model(
        "qwen-image",
        QWEN_IMAGE,
        "Qwen/Qwen-Image",
        "bfloat16",
        aliases=("qwen", "krea2", "anima", "nucleusmoe-image"),
        preview="taew2.1-image",
    ),
    Model(
        "qwen-image-edit",
        EDIT,
        "Qwen/Qwen-Image-Edit",
        "bfloat16",
        aliases=("qwen-image-edit-plus",),
        preview="taew2.1-image",
    ),
    Model(
        "qwen-image-layered",
        QWEN_IMAGE_LAYERED,
        "Qwen/Qwen-Image-Layered",
        "bfloat16",
        config={"input_channels": RGBA},
    ),
)

_MODELS_21: Final = (
    Model("qwen-image-2.1", QWEN_IMAGE_21, "Qwen/Qwen-Image-2.1", "bfloat16", aliases=("qwen-image-2.1-turbo",)),
)

FAMILIES: Final = (
    Family(
        "AutoencoderKLQwenImage",
        _MODELS,
        stages="causal",
        pixel_channels=lambda config: int(config.get("input_channels", RGB)),  # configs of the first weights lack it
        convert=from_original_names,
        forget=lambda module: module.clear_cache(),
    ),
    Family(
        "AutoencoderKLQwenImage21",
        _MODELS_21,
        stages="causal",
        pixel_channels=lambda config: int(config.get("out_channels", RGBA)),
        frames=lambda module: Frames(),  # its config names a ratio, but its code takes one frame
        forget=lambda module: module.clear_cache(),
    ),
)
