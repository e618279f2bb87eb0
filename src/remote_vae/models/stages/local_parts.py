"""Parts of a module of diffusers that several local networks share, as stages of `core.local`."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final

import torch
from einops import rearrange
from torch.nn import functional

from remote_vae.core.local import ONE, Each, Near
from remote_vae.models.stages.parts import expect

HALF: Final = Fraction(1, 2)

Rows = Callable[[torch.Tensor], torch.Tensor]
Function = Callable[[torch.Tensor, bool], torch.Tensor]


def each_of(function: Rows, channels: int, sides: Fraction = ONE) -> Each:
    """A function of rows that does not ask whether they belong to the first frame."""
    return Each(lambda rows, new: function(rows), channels, sides)


def strided_of(conv: Any) -> Near:
    """A 3x3 convolution that takes every second row and column."""
    expect(conv.kernel_size == (3, 3) and conv.stride == (2, 2) and conv.padding == (1, 1))
    expect(conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros")

    def strided(window: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        """The last row of a window is read by the next rows only, because a step takes two rows."""
        return functional.conv2d(functional.pad(window, (1, 1, top, bottom)), conv.weight, conv.bias, stride=2)

    return Near(strided, 1, conv.out_channels, HALF)


def patchified(patch: int) -> Function:
    """Pixels of a patch become channels, as Wan's and LTX's encoders read them."""
    return lambda rows, new: rearrange(rows, "f c (h p) (w q) -> f (c q p) h w", p=patch, q=patch)


def unpatchified(patch: int) -> Function:
    """The inverse of `patchified`."""
    return lambda rows, new: rearrange(rows, "f (c q p) h w -> f c (h p) (w q)", p=patch, q=patch)
