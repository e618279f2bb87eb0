"""The encoder and decoder of the tiny previews, described as the stages that `core.stream` runs.

Every part is checked, not only the class. An architecture that is not recognised gives None; the model then runs by its
own code. *Source*: diffusers' AutoencoderTiny.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from remote_vae.core.filters import fold
from remote_vae.core.local import Each, Layer, Local, Near, Residual, Stage
from remote_vae.core.stages import Convolution, Upsample

HALF: Final = Fraction(1, 2)
ACTIVATIONS: Final = (nn.ReLU, nn.SiLU, nn.GELU, nn.Mish)

Rows = Callable[[torch.Tensor], torch.Tensor]


class _Unknown(Exception):
    """A part that the stages cannot describe."""


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder."""
    try:
        inner, last = tuple(_parts(module.decoder.layers)), module.decoder.layers[-1].out_channels
        decoder = _each(_limited, module.config.latent_channels), *inner, _each(_to_signed, last)
        encoder = _each(_to_unsigned, module.config.in_channels), *_parts(module.encoder.layers)
    except (_Unknown, AttributeError):
        return None
    return Local((decoder,), pictures=True), Local((encoder,), pictures=True)


def _parts(layers: Any) -> Iterator[Stage]:
    """Layers one after another; an upsampling goes together with the convolution after it."""
    doubled, channels = False, 0
    for part in layers:
        if isinstance(part, nn.Upsample):
            _expect(part.scale_factor == 2 and part.mode == "nearest" and not doubled)
            doubled = True
            continue
        _expect(not doubled or isinstance(part, nn.Conv2d))
        if isinstance(part, nn.Conv2d):
            yield _convolution(part, doubled=doubled)
            doubled, channels = False, part.out_channels
        elif type(part) in ACTIVATIONS:
            yield _each(part, channels)
        else:
            channels = part.conv[-1].out_channels
            short = () if isinstance(part.skip, nn.Identity) else (_convolution(part.skip),)
            yield Residual(tuple(_parts(part.conv)), short)
            _expect(type(part.fuse) is nn.ReLU)
            yield _each(part.fuse, channels)
    _expect(not doubled)


def _convolution(conv: Any, *, doubled: bool = False) -> Layer | Near:
    side, weight, bias = conv.kernel_size[0], conv.weight.data, None if conv.bias is None else conv.bias.data
    _expect(conv.kernel_size == (side, side) and side in (1, 3) and conv.padding == (side // 2, side // 2))
    _expect(conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros")
    if conv.stride == (2, 2):
        _expect(side == 3 and not doubled)
        return Near(lambda window, top, bottom: _strided(conv, window, top, bottom), 1, len(weight), HALF)
    _expect(conv.stride == (1, 1))
    if not doubled:
        return Layer(Convolution(weight, bias))
    _expect(side == 3)
    folded = weight.dtype is not torch.float16  # folded taps round more than float16's own noise
    return Layer(Upsample(fold(weight) if folded else weight, bias, folded=folded))


def _strided(conv: Any, window: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
    """The last row of a window is read by the next rows only, because a step takes two rows."""
    given = functional.pad(window, (1, 1, top, bottom))
    return functional.conv2d(given, conv.weight, conv.bias, stride=2)


def _limited(rows: torch.Tensor) -> torch.Tensor:
    return torch.tanh(rows / 3) * 3


def _to_signed(rows: torch.Tensor) -> torch.Tensor:
    return rows.mul(2).sub(1)


def _to_unsigned(rows: torch.Tensor) -> torch.Tensor:
    return rows.add(1).div(2)


def _each(function: Rows, channels: int) -> Each:
    return Each(lambda rows, first: function(rows), channels)


def _expect(condition: object) -> None:
    if not condition:
        raise _Unknown
