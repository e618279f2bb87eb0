"""The encoder and decoder of Stable Cascade's stage A, described as the stages that `core.stream` runs.

Every part is checked, not only the class. An architecture that is not recognised gives None; the model then runs by its
own code. *Source*: diffusers' PaellaVQModel.
"""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import MixingResidualBlock
from torch import nn
from torch.nn import functional

from remote_vae.core.local import Layer, Local, Near, Residual, Stage
from remote_vae.core.stages import Upsample
from remote_vae.models.stages.local_parts import DOUBLE, HALF, each_of
from remote_vae.models.stages.parts import Unknown, bias_of, convolution_of, expect, weight_of


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder; their pixels are in [-1, 1]."""
    try:
        shuffle, unshuffle = module.out_block[1], module.in_block[0]
        expect(type(shuffle) is nn.PixelShuffle and type(unshuffle) is nn.PixelUnshuffle)
        expect(shuffle.upscale_factor == unshuffle.downscale_factor == 2)
        last = Layer(convolution_of(module.out_block[0]))
        pixels, values = module.config.out_channels, module.in_block[1].in_channels
        decoder = *_parts(module.up_blocks), last, each_of(lambda rows: shuffle(rows) * 2 - 1, pixels, DOUBLE)
        first = each_of(lambda rows: unshuffle(rows * 0.5 + 0.5), values, HALF)
        encoder = first, Layer(convolution_of(module.in_block[1])), *_parts(module.down_blocks)
    except (Unknown, AttributeError):
        return None
    return Local((decoder,), pictures=True), Local((encoder,), pictures=True)


def _parts(blocks: Any) -> Iterator[Stage]:
    for part in blocks:
        match part:
            case nn.Sequential():
                yield from _parts(part)
            case MixingResidualBlock():
                yield from _mixing(part)
            case nn.BatchNorm2d():
                yield each_of(part, part.num_features)
            case nn.ConvTranspose2d():
                yield _doubled(part)
            case nn.Conv2d() if part.kernel_size == (1, 1):
                yield Layer(convolution_of(part))
            case nn.Conv2d():
                yield _strided(part)
            case _:
                raise Unknown


def _mixing(block: Any) -> Iterator[Residual]:
    """A convolution of each channel by itself, and then two products at each position; both read a norm of it."""
    pad, conv = block.depthwise
    channels, gammas = conv.out_channels, block.gammas
    expect(type(pad) is nn.ReplicationPad2d and pad.padding == (1, 1, 1, 1))
    expect(conv.kernel_size == (3, 3) and conv.groups == channels and conv.padding == (0, 0))

    def normed(norm: nn.Module, rows: torch.Tensor, first: int) -> torch.Tensor:
        """*Shapes*: [f,C,rows,W] -> [f,rows,W,C]."""
        found: torch.Tensor = norm(rows.permute(0, 2, 3, 1))
        return found.mul_(1 + gammas[first]).add_(gammas[first + 1])

    def near(window: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        given = functional.pad(window, (1, 1, top, bottom), mode="replicate")
        found: torch.Tensor = conv(given)
        return found.mul_(gammas[2])

    def at_each(rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = block.channelwise(normed(block.norm2, rows, 3))
        return found.mul_(gammas[5]).permute(0, 3, 1, 2)

    yield Residual(
        (each_of(lambda rows: normed(block.norm1, rows, 0).permute(0, 3, 1, 2), channels), Near(near, 1, channels))
    )
    yield Residual((each_of(at_each, channels),))


def _doubled(conv: Any) -> Layer:
    expect(_halves(conv) and conv.output_padding == (0, 0))
    return Layer(Upsample(weight_of(conv.weight), bias_of(conv)))


def _strided(conv: Any) -> Near:
    """A 4x4 convolution that takes every second row and column."""
    expect(_halves(conv))

    def strided(window: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        given = functional.pad(window, (1, 1, top, bottom))
        return functional.conv2d(given, conv.weight, conv.bias, stride=2)

    return Near(strided, 1, conv.out_channels, HALF)


def _halves(conv: Any) -> bool:
    """Whether sides are halved, or doubled, by a kernel of 4x4."""
    sizes: bool = (conv.kernel_size, conv.stride, conv.padding) == ((4, 4), (2, 2), (1, 1))
    return sizes and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
