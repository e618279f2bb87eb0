"""The encoder and decoder of KVAE for pictures, described as the stages that `core.strips` runs.

Sides are doubled and halved by a convolution and, beside it, a copy or a mean of the pixels; then comes a product at
each position. All of that is linear, so it is one convolution here. Every part is checked, not only the class.
*Source*: diffusers' autoencoder_kl_kvae.
"""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.autoencoders import autoencoder_kl_kvae as source
from torch import nn

from remote_vae.core.stages import Convolution, Downsample, Program, Residual, Stage, Upsample
from remote_vae.models.stages.parts import Unknown, before_product, beside, convolution_of, expect, upsampled


def describe(module: Any) -> tuple[Program, Program] | None:
    """The decoder and the encoder."""
    try:
        expect(type(module.decoder) is source.KVAEDecoder2D and type(module.encoder) is source.KVAEEncoder2D)
        return Program(tuple(_decoder(module.decoder))), Program(tuple(_encoder(module.encoder)))
    except Unknown:
        return None


def _decoder(body: Any) -> Iterator[Stage]:
    expect(not body.give_pre_end)
    yield convolution_of(body.conv_in)
    yield from _middle(body)
    for index, level in reversed([*enumerate(body.up)]):
        yield from _blocks(level)
        if index > 0:
            yield _doubled(level.upsample)
    yield _last(body)


def _encoder(body: Any) -> Iterator[Stage]:
    yield convolution_of(body.conv_in)
    for index, level in enumerate(body.down):
        yield from _blocks(level)
        if index < len(body.down) - 1:
            yield _halved(level.downsample)
    yield from _middle(body)
    yield _last(body)


def _last(body: Any) -> Convolution:
    expect(type(body.nonlinearity) is nn.SiLU)
    return convolution_of(body.conv_out, body.norm_out)


def _middle(body: Any) -> Iterator[Residual]:
    yield _residual(body.mid.block_1)
    yield _residual(body.mid.block_2)


def _blocks(level: Any) -> Iterator[Residual]:
    expect(not level.attn)
    yield from map(_residual, level.block)


def _residual(block: Any) -> Residual:
    expect(type(block) is source.KVAEResnetBlock2D and type(block.nonlinearity) is nn.SiLU)
    shortcut = None
    if block.in_channels != block.out_channels:
        shortcut = convolution_of(block.conv_shortcut if block.use_conv_shortcut else block.nin_shortcut)
    return Residual(convolution_of(block.conv1, block.norm1), convolution_of(block.conv2, block.norm2), shortcut)


def _doubled(part: Any) -> Upsample:
    expect(type(part) is source.KVAEPXSUpsample and part.factor == 2)
    conv = part.spatial_conv
    expect(conv.kernel_size == (3, 3) and conv.padding == (1, 1))
    return doubled(conv, part.linear)


def doubled(conv: Any, product: Any) -> Upsample:
    """Copies of pixels, a convolution of them that is added, and a product.

    A row that mirrors the edge of a doubled map equals the edge.
    """
    taps = torch.zeros(3, 3)
    taps[1, 1] = 1
    return upsampled(Convolution(*before_product(beside(mirroring(conv, 1), taps), conv.bias, product), repeats=True))


def _halved(part: Any) -> Downsample:
    expect(type(part) is source.KVAEPXSDownsample and part.factor == 2)
    conv = part.spatial_conv
    expect(conv.kernel_size == (3, 3) and conv.padding == (1, 1))
    kernel, bias = before_product(beside_means(conv), conv.bias, part.linear)
    return Downsample(kernel, bias, repeats=True, mirrors=True)


def beside_means(conv: Any) -> torch.Tensor:
    """The kernel in float32 of a convolution of every second pixel, to which the means of pixels are added."""
    taps = torch.zeros(3, 3)
    taps[1:, 1:] = 0.25
    return beside(mirroring(conv, 2), taps)


def mirroring(conv: Any, stride: int) -> torch.Tensor:
    """The kernel of a 3x3 convolution that mirrors edges. *Shapes*: [out,in,3,3]."""
    expect(conv.padding_mode == "reflect" and conv.stride[-2:] == (stride, stride) and conv.bias is not None)
    expect(set(conv.dilation) == {1} and conv.groups == 1)
    kernel: torch.Tensor = conv.weight.data
    return kernel if kernel.ndim == 4 else kernel[:, :, 0]
