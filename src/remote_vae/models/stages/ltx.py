"""The encoder and decoder of LTX-2 and LTX-Video, described as the stages that `core.stream` runs.

Every part is checked, not only the class. An architecture that is not recognised, or a decoder of LTX-2 that takes a
timestep or draws noise, gives None; the model then runs by its own code. *Source*: diffusers' AutoencoderKLLTX2Video
and AutoencoderKLLTXVideo.
"""

from collections.abc import Iterator
from fractions import Fraction
from math import prod
from typing import Any, Final

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional

from remote_vae.core.local import Each, Frames, Layer, Local, Norm, Residual, Stage
from remote_vae.core.local_frames import ThreeFrames
from remote_vae.core.stages import Convolution
from remote_vae.models.stages.local_parts import Function, patchified, strided_of, unpatchified
from remote_vae.models.stages.parts import Unknown, bias_of, expect, weight_of

Sides = tuple[int, int, int]


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder."""
    try:
        expect(not module.config.timestep_conditioning and module.config.patch_size_t == 1)
        patch, decoder, encoder = module.config.patch_size, module.decoder, module.encoder
        return decoder_of(decoder, patch, decoder.is_causal), encoder_of(module, patch, encoder.is_causal)
    except (Unknown, AttributeError):
        return None


class Parts:
    """How the parts of a decoder are described that a timestep may change."""

    def residuals(self, block: Any, before: list[Stage], causal: bool) -> None:
        """Appends the residual blocks of a level."""
        before.extend(residual_of(part, causal) for part in block.resnets)

    def last(self, body: Any, causal: bool) -> tuple[Stage, ...]:
        """The last norm and convolution."""
        return (layer_of(body.conv_out, causal, body.norm_out),)


PLAIN: Final = Parts()


def decoder_of(body: Any, patch: int, causal: bool, parts: Parts = PLAIN) -> Local:
    expect(isinstance(body.conv_act, nn.SiLU))
    stages: list[Stage] = [layer_of(body.conv_in, causal)]
    parts.residuals(body.mid_block, stages, causal)
    for block in body.up_blocks:
        if block.conv_in is not None:
            stages.append(residual_of(block.conv_in, causal))
        for part in block.upsamplers or ():
            stages.extend(_up(part, causal))
        parts.residuals(block, stages, causal)
    pixels = Each(unpatchified(patch), body.conv_out.conv.out_channels // patch**2, sides=Fraction(patch))
    return Local(((*stages, *parts.last(body, causal), pixels),))


def encoder_of(module: Any, patch: int, causal: bool) -> Local:
    body = module.encoder
    expect(isinstance(body.conv_act, nn.SiLU))
    first = layer_of(body.conv_in, causal)
    expect(not first.mirrors)  # no served model has it, and the smallest pictures would have no row to mirror
    stages: list[Stage] = [Each(patchified(patch), first.layer.weight.shape[1], sides=Fraction(1, patch)), first]
    for block in body.down_blocks:
        stages.extend(residual_of(part, causal) for part in block.resnets)
        for part in block.downsamplers or ():
            stages.extend(_down(part, causal) if hasattr(part, "group_size") else _strided(part, causal))
        if getattr(block, "conv_out", None) is not None:
            stages.append(residual_of(block.conv_out, causal))
    stages.extend(residual_of(part, causal) for part in body.mid_block.resnets)
    last = layer_of(body.conv_out, causal, body.norm_out)
    spread = Each(_spread, 2 * (last.layer.channels - 1))
    return Local(((*stages, last, spread),), module.temporal_compression_ratio)


def residual_of(block: Any, causal: bool) -> Residual:
    expect(isinstance(block.nonlinearity, nn.SiLU) and block.scale_shift_table is None)
    expect(block.per_channel_scale1 is None and block.per_channel_scale2 is None)
    main = layer_of(block.conv1, causal, block.norm1), layer_of(block.conv2, causal, block.norm2)
    if block.conv_shortcut is None:
        return Residual(main)
    short, norm = getattr(block.conv_shortcut, "conv", block.conv_shortcut), block.norm3
    expect(short.kernel_size == (1, 1, 1) and short.stride == (1, 1, 1) and short.groups == 1)
    weight = weight_of(short.weight)[:, :, 0]
    return Residual(main, (Each(_normalised(norm), short.in_channels), Layer(Convolution(weight, bias_of(short)))))


def _up(part: Any, causal: bool) -> Iterator[Stage]:
    """Channels become frames, rows and columns; in time the first frame of the result is dropped."""
    layer, sides = layer_of(part.conv, causal), _sides(part)
    expect(prod(sides) % part.upscale_factor == 0)
    channels, grown = layer.layer.channels // prod(sides), (Fraction(sides[1]), Fraction(sides[0]))
    main = layer, Each(_unfolded(sides), channels, *grown)
    if part.residual:
        yield Residual(main, (Each(_unfolded(sides, prod(sides) // part.upscale_factor), channels, *grown),))
    else:
        yield from main


def _down(part: Any, causal: bool) -> Iterator[Stage]:
    """Frames, rows and columns become channels, in time after the first frame is doubled; the shortcut takes means."""
    layer, sides = layer_of(part.conv, causal), _sides(part)
    given, channels = layer.layer.weight.shape[1], layer.layer.channels * prod(sides)
    expect(given * prod(sides) == channels * part.group_size)
    if sides[0] == 2:
        yield Each(_first_doubled, given)
    shrunk = Fraction(1, sides[1]), Fraction(1, sides[0])
    yield Residual(
        (layer, Each(_folded(sides), channels, *shrunk)), (Each(_means(sides, channels), channels, *shrunk),)
    )


def _strided(part: Any, causal: bool) -> Iterator[Stage]:
    """A convolution that takes every second frame, row and column."""
    expect(causal and part.conv.kernel_size[0] == 3)
    yield ThreeFrames()
    yield strided_of(part.conv)


def _sides(part: Any) -> Sides:
    """The frames, rows and columns that one position becomes, or that become one."""
    frames, rows, columns = part.stride
    expect(rows == columns and frames in (1, 2) and rows in (1, 2))
    return frames, rows, columns


def layer_of(part: Any, causal: bool, norm: Any = None, *, silu: bool = False) -> Layer:
    """A convolution in time and space, after the norm and SiLU if there is a norm, or after SiLU alone."""
    conv = part.conv
    expect(conv.kernel_size == (3, 3, 3) and conv.stride == conv.dilation == (1, 1, 1) and conv.groups == 1)
    expect(conv.padding == (0, 1, 1) and conv.padding_mode in ("zeros", "reflect"))
    mirrors = conv.padding_mode == "reflect"
    layer = Convolution(weight_of(conv.weight), bias_of(conv), repeats=mirrors)
    frames = Frames(2, 0, repeats=True) if causal else Frames(1, 1, repeats=True)
    expect(norm is None or getattr(norm, "weight", None) is None)
    found = None if norm is None else Norm(None, norm.eps)
    return Layer(layer, found, silu=silu or norm is not None, frames=frames, mirrors=mirrors)


def _normalised(norm: nn.LayerNorm) -> Function:
    """A LayerNorm over the channels of each position."""
    weight, bias = norm.weight.data, norm.bias.data

    def found(rows: torch.Tensor, new: bool) -> torch.Tensor:
        return functional.layer_norm(rows.permute(0, 2, 3, 1), weight.shape, weight, bias, norm.eps).permute(0, 3, 1, 2)

    return found


def _unfolded(sides: Sides, copies: int = 1) -> Function:
    frames, height, width = sides

    def found(rows: torch.Tensor, new: bool) -> torch.Tensor:
        pattern = "f (c t p q) h w -> (f t) (h p) (w q) c"
        wide = rearrange(rows, pattern, t=frames, p=height, q=width).permute(0, 3, 1, 2)
        wide = wide[frames - 1 :] if new else wide
        return wide if copies == 1 else wide.repeat(1, copies, 1, 1)

    return found


def _folded(sides: Sides) -> Function:
    frames, height, width = sides
    pattern = "(f t) c (h p) (w q) -> f (c t p q) h w"
    return lambda rows, new: rearrange(rows, pattern, t=frames, p=height, q=width)


def _means(sides: Sides, channels: int) -> Function:
    """Each channel is the mean of as many neighbours as make it."""
    fold = _folded(sides)
    return lambda rows, new: rearrange(fold(rows, new), "f (c n) h w -> f c n h w", c=channels).mean(2)


def _first_doubled(rows: torch.Tensor, new: bool) -> torch.Tensor:
    return torch.cat([rows[:1], rows]) if new else rows


def _spread(rows: torch.Tensor, new: bool) -> torch.Tensor:
    """The last channel is the deviation of all channels but itself."""
    return torch.cat([rows, rows[:, -1:].expand(-1, rows.shape[1] - 2, -1, -1)], 1)
