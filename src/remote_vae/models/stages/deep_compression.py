"""The encoders and decoders of the deep compression autoencoders, described as the stages that `core.stream` runs.

Every part is checked, not only the class. An architecture that is not recognised gives None; the model then runs by its
own code. *Source*: diffusers' AutoencoderDC.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from remote_vae.core.local import Each, Layer, Local, Near, Norm, Residual, Stage, Sums
from remote_vae.core.root_mean_square import normalise
from remote_vae.models.stages.local_parts import HALF, Rows, each_of, strided_of
from remote_vae.models.stages.parts import Unknown, convolution_of, expect, upsample_of

TWICE: Final = Fraction(2)
ACTIVATIONS: Final = (nn.SiLU, nn.ReLU, nn.ReLU6, nn.Identity)


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder."""
    try:
        halves = tuple(_decoder(module.decoder)), tuple(_encoder(module.encoder))
    except (Unknown, AttributeError):
        return None
    decoder, encoder = (Local((stages,), pictures=True) for stages in halves)
    return decoder, encoder


def _decoder(body: Any) -> Iterator[Stage]:
    first = _layer(body.conv_in)
    if body.in_shortcut:
        times = body.in_shortcut_repeats
        yield Residual((first,), (each_of(lambda rows: rows.repeat_interleave(times, 1), first.layer.channels),))
    else:
        yield first
    for level in reversed(body.up_blocks):
        for block in level:
            yield from _part(block)
    channels = len(body.norm_out.weight)
    yield _norm(body.norm_out, channels)
    yield _activation(body.conv_act, channels)
    yield from _part(body.conv_out)


def _encoder(body: Any) -> Iterator[Stage]:
    yield from _part(body.conv_in)
    for level in body.down_blocks:
        for block in level:
            yield from _part(block)
    last = _layer(body.conv_out)
    if body.out_shortcut:
        size = body.out_shortcut_average_group_size
        yield Residual((last,), (each_of(lambda rows: _mean(rows, size), last.layer.channels),))
    else:
        yield last


def _part(block: Any) -> Iterator[Stage]:
    match type(block).__name__:
        case "Conv2d":
            yield _layer(block)
        case "ResBlock":
            channels, last = block.conv2.out_channels, _layer(block.conv2)
            if isinstance(block.nonlinearity, nn.SiLU):
                middle: tuple[Stage, ...] = (Layer(last.layer, silu=True),)
            else:
                middle = (_activation(block.nonlinearity, block.conv1.out_channels), last)
            yield Residual((_layer(block.conv1), *middle, _norm(block.norm, channels)))
        case "EfficientViTBlock":
            yield _attention(block.attn)
            yield _gated(block.conv_out)
        case "DCUpBlock2d":
            yield from _up(block)
        case "DCDownBlock2d":
            yield from _down(block)
        case _:
            raise Unknown


def _up(block: Any) -> Iterator[Stage]:
    conv, times = block.conv, block.repeats
    expect(block.factor == 2)
    if block.interpolate:
        expect(block.interpolation_mode == "nearest")
        channels = conv.out_channels
        main: tuple[Stage, ...] = (Layer(upsample_of(conv)),)
    else:
        channels = conv.out_channels // 4
        main = _layer(conv), each_of(lambda rows: functional.pixel_shuffle(rows, 2), channels, TWICE)
    if block.shortcut:
        again = each_of(lambda rows: functional.pixel_shuffle(rows.repeat_interleave(times, 1), 2), channels, TWICE)
        yield Residual(main, (again,))
    else:
        yield from main


def _down(block: Any) -> Iterator[Stage]:
    conv, size = block.conv, block.group_size
    expect(block.factor == 2)
    if block.downsample:
        channels = 4 * conv.out_channels
        main: tuple[Stage, ...] = (
            _layer(conv),
            each_of(lambda rows: functional.pixel_unshuffle(rows, 2), channels, HALF),
        )
    else:
        channels = conv.out_channels
        main = (strided_of(conv),)
    if block.shortcut:
        yield Residual(main, (each_of(lambda rows: _mean(functional.pixel_unshuffle(rows, 2), size), channels, HALF),))
    else:
        yield from main


def _attention(part: Any) -> Stage:
    """Linear attention over all positions, of the projections themselves and of what they are nearby."""
    heads, channels, scales = part.attention_head_dim, part.to_out.out_features, tuple(part.to_qkv_multiscale)
    halo = max((scale.proj_in.kernel_size[0] // 2 for scale in scales), default=0)
    expect(part.residual_connection and type(part.nonlinearity) is nn.ReLU)
    wide = part.to_q.out_features + part.to_k.out_features + part.to_v.out_features

    def projected(rows: torch.Tensor) -> torch.Tensor:
        positions = rows.movedim(1, -1)
        return torch.cat([part.to_q(positions), part.to_k(positions), part.to_v(positions)], -1).movedim(-1, 1)

    def with_scales(window: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        given = functional.pad(window, (0, 0, top, bottom))
        found = [given[:, :, halo : given.shape[2] - halo]]
        for scale in scales:
            conv = scale.proj_in
            less = halo - conv.kernel_size[0] // 2
            near = given[:, :, less : given.shape[2] - less]
            near = functional.conv2d(near, conv.weight, padding=(0, conv.kernel_size[0] // 2), groups=conv.groups)
            found.append(scale.proj_out(near))
        return torch.cat(found, 1)

    def parts(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return rows.float().reshape(len(rows), -1, 3 * heads, rows.shape[2] * rows.shape[3]).chunk(3, 2)

    def summed(rows: torch.Tensor) -> torch.Tensor:
        _, key, value = parts(rows)
        return functional.pad(value, (0, 0, 0, 1), value=1.0) @ key.relu().transpose(-1, -2)

    def applied(rows: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
        query = parts(rows)[0].relu()
        found = sums @ query
        found = found[:, :, :-1] / (found[:, :, -1:] + part.eps)
        found = found.to(rows.dtype).reshape(len(rows), -1, *rows.shape[2:])
        return norm(part.to_out(found.movedim(1, -1)).movedim(-1, 1))

    norm = _normalised(part.norm_out)
    nearby = Near(with_scales, halo, (1 + len(scales)) * wide)
    return Residual((Sums((each_of(projected, wide), nearby), summed, applied, channels),))


def _gated(part: Any) -> Stage:
    """Wide hidden channels are made, and read nearby, a few rows at a time."""
    expect(part.residual_connection and type(part.nonlinearity) is nn.SiLU)
    depth, channels, norm = part.conv_depth, part.conv_point.out_channels, _normalised(part.norm)

    def gated(window: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        given = functional.pad(window, (1, 1, top, bottom))
        found, gate = functional.conv2d(given, depth.weight, depth.bias, groups=depth.groups).chunk(2, 1)
        return norm(part.conv_point(found * functional.silu(gate)))

    wide = each_of(lambda rows: functional.silu(part.conv_inverted(rows), inplace=True), depth.in_channels)
    return Residual((wide, Near(gated, 1, channels)))


def _layer(conv: Any) -> Layer:
    return Layer(convolution_of(conv))


def _normalised(part: Any) -> Rows:
    """Normalises rows in place, if the norm sees one position at a time."""
    if type(part).__name__ != "RMSNorm":
        expect(type(part) is nn.BatchNorm2d and not part.training)
        return part  # type: ignore[no-any-return]
    norm, bias = Norm(part.weight.data.float(), part.eps), part.bias

    def found(rows: torch.Tensor) -> torch.Tensor:
        normalise(rows, rows, norm)
        return rows if bias is None else rows.add_(bias.view(-1, 1, 1))

    return found


def _norm(part: Any, channels: int) -> Each:
    return each_of(_normalised(part), channels)


def _activation(part: Any, channels: int) -> Each:
    expect(type(part) in ACTIVATIONS)
    return each_of(part, channels)


def _mean(rows: torch.Tensor, size: int) -> torch.Tensor:
    """The mean of each group of channels."""
    return torch.unflatten(rows, 1, (-1, size)).mean(2)
