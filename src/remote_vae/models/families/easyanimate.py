"""The VAE of EasyAnimate, causal in time: four frames for a latent frame after the first.

Its layers keep frames from one step to the next, also after an exception.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import Affine, Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import VIDEO_LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from remote_vae.core.pieces import Blocks, Each


def decode_pieces(module: Any, latent: "torch.Tensor", each: "Each") -> "Blocks":
    """The same frame by frame. *Source*: `_decode` of the class."""
    first = 0
    given = module.post_quant_conv(latent)
    for found in _steps(module, module.decoder, given, module.num_latent_frames_batch_size, each):
        yield first, 0, found[0].transpose(0, 1)
        first += found.shape[2]


def encode_pieces(module: Any, pixels: "torch.Tensor", each: "Each") -> "Blocks":
    """The same some frames at a time; the moments are small beside them. *Source*: `_encode` of the class."""
    import torch

    moments = torch.cat([*_steps(module, module.encoder, pixels, module.num_sample_frames_batch_size, each)], dim=2)
    yield 0, 0, module.quant_conv(moments)[0].transpose(0, 1)


def _steps(
    module: Any, net: "Callable[..., torch.Tensor]", given: "torch.Tensor", size: int, each: "Each"
) -> "Iterator[torch.Tensor]":
    """The first frame, then `size` frames at a time, which depend on what the layers keep of those before them."""

    nets = [partial(net) for _ in range(STEADY + 1)]  # apart, because at first the layers keep more at each step
    try:
        yield each(nets[0], given[:, :, :1])
        for index, start in enumerate(range(1, given.shape[2], size), 1):
            yield each(nets[min(index, STEADY)], given[:, :, start : start + size])
    finally:
        module._clear_conv_cache()


STEADY: Final = 2  # groups of frames after which the layers keep no more
_RECIPE: Final = Recipe(
    "easyanimate", VIDEO_LAYOUTS, (Affine(("scaling_factor",)),), posterior="mode", channels=(16,), fps=8, ratio=8
)
_MODELS: Final = (
    Model(
        "easyanimate",
        _RECIPE,
        "alibaba-pai/EasyAnimateV5.1-12b-zh",
        "bfloat16",
        aliases=("easyanimate-v5.1", "easyanimate-inp", "easyanimate-control"),
    ),
)

FAMILIES: Final = (
    Family(
        "AutoencoderKLMagvit",
        _MODELS,
        stages="easyanimate",
        whole_groups=True,
        decode_pieces=decode_pieces,
        encode_pieces=encode_pieces,
        forget=lambda module: module._clear_conv_cache(),
    ),
)
