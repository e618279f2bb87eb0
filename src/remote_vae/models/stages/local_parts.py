"""Parts of a module of diffusers that several local networks share, as stages of `core.local`."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional

from remote_vae.core.local import ONE, Each, Frames, Layer, Local, Near, Norm, Stage
from remote_vae.core.stages import Convolution, Upsample
from remote_vae.core.time_attention import TimeAttention
from remote_vae.models.stages.parts import bias_of, convolution_of, expect, upsample_of

HALF: Final = Fraction(1, 2)
DOUBLE: Final = Fraction(2)

Rows = Callable[[torch.Tensor], torch.Tensor]
Function = Callable[[torch.Tensor, bool], torch.Tensor]
Cut = Callable[[torch.Tensor], Iterator[list[torch.Tensor]]]


def each_of(function: Rows, channels: int, sides: Fraction = ONE) -> Each:
    """A function of rows that does not ask whether they belong to the first frame."""
    return Each(lambda rows, new: function(rows), channels, sides)


def strided_of(conv: Any) -> Near:
    """A 3x3 convolution that takes every second row and column; its taps in time, if it has them, are channels."""
    *before, height, width = conv.kernel_size
    expect((height, width) == (3, 3) and set(conv.stride) == {2} and set(conv.dilation) == {1})
    expect(conv.padding == (*[0] * len(before), 1, 1) and conv.groups == 1 and conv.padding_mode == "zeros")
    return strided(conv.weight.data.flatten(1, -3), bias_of(conv))


def strided(weight: torch.Tensor, bias: torch.Tensor | None, *, mirrors: bool = False) -> Near:
    """The same of a kernel. Beyond the borders are zeros, or, if it `mirrors`, the rows and columns next to them."""

    def found(window: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        """The last row of a window is read by the next rows only, because a step takes two rows."""
        given = functional.pad(window, (1, 1, top, bottom), mode="reflect" if mirrors else "constant")
        return functional.conv2d(given, weight, bias, stride=2)

    return Near(found, 1, len(weight), HALF)


def small_upsample_of(conv: Any) -> Upsample:
    """An upsampling and the convolution after it; in 16 bits folded taps round more than all layers of a tiny VAE."""
    if conv.weight.dtype is torch.float32:
        return upsample_of(conv)
    found = convolution_of(conv)
    return Upsample(found.weight, found.bias, folded=False)


def layer_of(conv: Any, *, doubled: bool = False) -> Layer | Near:
    """A convolution of a tiny VAE; `doubled` if an upsampling goes before it."""
    if doubled:
        return Layer(small_upsample_of(conv))
    return strided_of(conv) if conv.stride == (2, 2) else Layer(convolution_of(conv))


def patchified(patch: int) -> Function:
    """Pixels of a patch become channels, as Wan's and LTX's encoders read them."""
    return lambda rows, new: rearrange(rows, "f c (h p) (w q) -> f (c q p) h w", p=patch, q=patch)


def unpatchified(patch: int) -> Function:
    """The inverse of `patchified`."""
    return lambda rows, new: rearrange(rows, "f (c q p) h w -> f c (h p) (w q)", p=patch, q=patch)


def last_of(layer: Layer) -> tuple[Layer, ...]:
    """The last convolution, which has few channels: what its taps give is kept for later frames, not what they read."""
    given = layer.layer
    weight = given.weight
    if weight.ndim < 5 or weight.dtype is not torch.float32:  # each part of a sum of 16 bits would be rounded
        return (layer,)
    channels, taps = len(weight), weight.shape[2]
    parts = weight.transpose(1, 2).transpose(0, 1).flatten(0, 1)
    choice = torch.eye(taps * channels, device=weight.device).view(taps, channels, -1).permute(1, 2, 0)
    return (
        replace(layer, layer=Convolution(parts, None, repeats=given.repeats), frames=Frames()),
        Layer(Convolution(choice[..., None, None].contiguous(), given.bias), frames=layer.frames),
    )


def norm_of(norm: Any) -> Norm:
    """The root mean square of the channels of a position, by the classes of Wan and of HunyuanVideo 1.5."""
    expect(norm.channel_first and not isinstance(norm.bias, nn.Parameter) and norm.scale == len(norm.gamma) ** 0.5)
    return Norm(norm.gamma.data.flatten().float())


def divided(stages: Iterator[Stage | TimeAttention], group: int = 1, cut: Cut | None = None) -> Local:
    """Sections between which attention runs."""
    sections: list[list[Stage]] = [[]]
    between = []
    for stage in stages:
        if isinstance(stage, TimeAttention):
            between.append(stage)
            sections.append([])
        else:
            sections[-1].append(stage)
    return Local(tuple(map(tuple, sections)), group, between=tuple(between), cut=cut)


def folded(frames: int, side: int) -> Function:
    """Frames and pixels of a patch become channels. The first frame is there as often as a patch has frames."""

    def found(rows: torch.Tensor, new: bool) -> torch.Tensor:
        given = rows.repeat_interleave(frames, 0) if new else rows
        wide = rearrange(given, "(f t) c (h p) (w q) -> f h w (c t p q)", t=frames, p=side, q=side)
        return wide.permute(0, 3, 1, 2)

    return found


def unfolded(frames: int, side: int) -> Function:
    """The inverse of `folded`."""

    def found(rows: torch.Tensor, new: bool) -> torch.Tensor:
        wide = rearrange(rows, "f (c t p q) h w -> (f t) (h p) (w q) c", t=frames, p=side, q=side)
        return wide.permute(0, 3, 1, 2)

    return found


def later_doubled(rows: torch.Tensor, new: bool) -> torch.Tensor:
    """Two frames of each, apart from the first one of the clip."""
    found = rows.repeat_interleave(2, 0)
    return found[1:] if new else found
