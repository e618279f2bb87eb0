"""The VAEs of CogVideoX 1.0 and 1.5. Its latents have their frames before their channels.

An odd number of latent frames gives one frame for the first and four for each other, an even number four for each.
"""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import Affine, Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import CHANNELS_FIRST, FRAMES_FIRST_LAYOUTS
from remote_vae.values import FrameRule, Frames

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from remote_vae.core.pieces import Blocks, Each

STEADY: Final = 2  # groups of frames after which the layers keep no more
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


def decode_pieces(module: Any, latent: "torch.Tensor", each: "Each") -> "Blocks":
    """The same some frames at a time. *Source*: `_decode` of the class, whose norms see these frames together."""

    def net(piece: "torch.Tensor", kept: Any) -> tuple["torch.Tensor", Any]:
        found: tuple[torch.Tensor, Any] = module.decoder(
            piece if module.post_quant_conv is None else module.post_quant_conv(piece), conv_cache=kept
        )
        return found

    return _steps(net, latent, module.num_latent_frames_batch_size, each)


def encode_pieces(module: Any, pixels: "torch.Tensor", each: "Each") -> "Blocks":
    """The same some frames at a time. *Source*: `_encode` of the class."""

    def net(piece: "torch.Tensor", kept: Any) -> tuple["torch.Tensor", Any]:
        found, kept = module.encoder(piece, conv_cache=kept)
        return found if module.quant_conv is None else module.quant_conv(found), kept

    return _steps(net, pixels, module.num_sample_frames_batch_size, each)


def _steps(
    net: "Callable[[torch.Tensor, Any], tuple[torch.Tensor, Any]]", given: "torch.Tensor", size: int, each: "Each"
) -> "Blocks":
    """`size` frames at a time, those beyond whole groups with the first group. The layers keep frames of each group."""
    kept: Any = None

    def step(piece: "torch.Tensor") -> "torch.Tensor":
        nonlocal kept
        found, kept = net(piece, kept)
        return found

    nets = [partial(step) for _ in range(STEADY + 1)]  # apart, because at first the layers keep more at each step
    first, frames = 0, given.shape[2]
    stops = range(size + frames % size if frames >= size else frames, frames + 1, size)
    for index, (start, stop) in enumerate(zip((0, *stops), stops, strict=False)):
        found = each(nets[min(index, STEADY)], given[:, :, start:stop])
        yield first, 0, found[0].transpose(0, 1)
        first += found.shape[2]


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

FAMILIES: Final = (
    Family(
        "AutoencoderKLCogVideoX",
        _MODELS,
        stages="cogvideox",
        frames=_frames,
        decode_pieces=decode_pieces,
        encode_pieces=encode_pieces,
    ),
)
