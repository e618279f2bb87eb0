"""The encoder and decoder of the tiny previews, described as the stages that `core.stream` runs.

Every part is checked, not only the class. An architecture that is not recognised gives None; the model then runs by its
own code. *Source*: diffusers' AutoencoderTiny.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import nn

from remote_vae.core.local import FrameNorm, Local, Residual, Stage
from remote_vae.models.stages.local_parts import each_of, layer_of
from remote_vae.models.stages.parts import Unknown, expect, norm_of

ACTIVATIONS: Final = (nn.ReLU, nn.SiLU, nn.GELU, nn.Mish)


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder."""
    try:
        inner, last = parts_of(module.decoder.layers, _block), module.decoder.layers[-1].out_channels
        decoder = each_of(limited, module.config.latent_channels), *inner, each_of(_to_signed, last)
        encoder = each_of(to_unsigned, module.config.in_channels), *parts_of(module.encoder.layers, _block)
    except (Unknown, AttributeError):
        return None
    return Local((decoder,), pictures=True), Local((encoder,), pictures=True)


def parts_of(layers: Any, block: Callable[[Any], Iterator[Stage]]) -> Iterator[Stage]:
    """Layers one after another, and blocks; an upsampling goes together with the convolution after it."""
    doubled, channels = False, 0
    for part in layers:
        if isinstance(part, nn.Upsample):
            expect(part.scale_factor == 2 and part.mode == "nearest" and not doubled)
            doubled = True
            continue
        expect(not doubled or isinstance(part, nn.Conv2d))
        if isinstance(part, nn.Conv2d):
            yield layer_of(part, doubled=doubled)
            doubled, channels = False, part.out_channels
        elif isinstance(part, nn.GroupNorm):
            yield FrameNorm(norm_of(part), silu=False)
        elif type(part) in ACTIVATIONS:
            yield each_of(part, channels)
        else:
            yield from block(part)
            channels = part.conv[-1].out_channels
    expect(not doubled)


def _block(part: Any) -> Iterator[Stage]:
    short = () if isinstance(part.skip, nn.Identity) else (layer_of(part.skip),)
    yield Residual(tuple(parts_of(part.conv, _block)), short)
    expect(type(part.fuse) is nn.ReLU)
    yield each_of(part.fuse, part.conv[-1].out_channels)


def limited(rows: torch.Tensor) -> torch.Tensor:
    return torch.tanh(rows / 3) * 3


def _to_signed(rows: torch.Tensor) -> torch.Tensor:
    return rows.mul(2).sub(1)


def to_unsigned(rows: torch.Tensor) -> torch.Tensor:
    return rows.add(1).div(2)
