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

from remote_vae.core.filters import laid_for
from remote_vae.core.stages import Convolution, Downsample, Program, Residual, Stage, Upsample
from remote_vae.models.stages.parts import Unknown, bias_of, convolution_of, expect, upsampled


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
    """A row that mirrors the edge of a doubled map equals the edge."""
    expect(type(part) is source.KVAEPXSUpsample and part.factor == 2)
    beside = torch.zeros(3, 3)
    beside[1, 1] = 1
    return upsampled(Convolution(*_joined(part, beside, stride=1), repeats=True))


def _halved(part: Any) -> Downsample:
    expect(type(part) is source.KVAEPXSDownsample and part.factor == 2)
    beside = torch.zeros(3, 3)
    beside[1:, 1:] = 0.25
    return Downsample(*_joined(part, beside, stride=2), repeats=True, mirrors=True)


def _joined(part: Any, beside: torch.Tensor, *, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Kernel and bias of the convolution and of what is added to it for each channel, and of the product after them."""
    conv, product = part.spatial_conv, part.linear
    expect(conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.padding_mode == "reflect")
    expect(conv.stride == (stride, stride) and conv.dilation == (1, 1) and conv.groups == 1)
    expect(product.kernel_size == (1, 1) and conv.bias is not None and bias_of(product) is not None)
    mixed, kernel = product.weight.data.float().flatten(1), conv.weight.data.float()
    kernel = torch.einsum("om,miyx->oiyx", mixed, kernel) + mixed[..., None, None] * beside.to(mixed.device)
    bias = torch.mv(mixed, conv.bias.data.float()) + product.bias.data.float()
    return laid_for(kernel.to(conv.weight.dtype)), bias.to(conv.weight.dtype)
