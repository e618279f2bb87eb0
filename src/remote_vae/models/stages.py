"""A diffusers encoder or decoder, described as the stages that `core.strips` runs.

Every part is checked, not only the class. An architecture that is not recognised gives None; the model then runs by its
own code. *Source*: diffusers' Encoder, Decoder, ResnetBlock2D, Attention, Upsample2D and Downsample2D.
"""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import Attention as DiffusersAttention
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UNetMidBlock2D, UpDecoderBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from remote_vae.core.filters import fold
from remote_vae.core.stages import Attention, Convolution, Downsample, Norm, Program, Residual, Stage, Upsample


class _Unknown(Exception):
    """A part that the stages cannot describe."""


def describe_decoder(module: nn.Module) -> Program | None:
    """post_quant_conv and the decoder of an AutoencoderKL; None for other architectures."""
    return _describe(module, "decoder", Decoder, before="post_quant_conv")


def describe_encoder(module: nn.Module) -> Program | None:
    """The encoder of an AutoencoderKL and quant_conv; None for other architectures."""
    return _describe(module, "encoder", Encoder, after="quant_conv")


def _describe(module: nn.Module, name: str, kind: type, *, before: str = "", after: str = "") -> Program | None:
    body, first, last = (getattr(module, part, None) for part in (name, before, after))
    if type(body) is not kind:
        return None
    try:
        stages = [
            *([_convolution(first)] if first is not None else []),
            *_body(body),
            *([_convolution(last)] if last is not None else []),
        ]
    except _Unknown:
        return None
    return Program(tuple(stages))


def _body(body: Any) -> Iterator[Stage]:
    yield _convolution(body.conv_in)
    if isinstance(body, Encoder):
        for block in body.down_blocks:
            _expect(type(block) is DownEncoderBlock2D)
            yield from map(_residual, block.resnets)
            yield from map(_downsample, block.downsamplers or ())
    yield from _middle(body.mid_block)
    if isinstance(body, Decoder):
        for block in body.up_blocks:
            _expect(type(block) is UpDecoderBlock2D)
            yield from map(_residual, block.resnets)
            yield from map(_upsample, block.upsamplers or ())
    _expect(type(body.conv_act) is nn.SiLU)
    yield _convolution(body.conv_out, body.conv_norm_out)


def _middle(block: Any) -> Iterator[Stage]:
    if block is None:
        return
    _expect(type(block) is UNetMidBlock2D)
    yield _residual(block.resnets[0])
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            yield _attention(attention)
        yield _residual(resnet)


def _residual(block: Any) -> Residual:
    _expect(type(block) is ResnetBlock2D)
    plain = block.time_emb_proj is None and block.upsample is None and block.downsample is None
    _expect(plain and block.output_scale_factor == 1 and type(block.nonlinearity) is nn.SiLU)
    return Residual(
        _convolution(block.conv1, block.norm1),
        _convolution(block.conv2, block.norm2),
        _convolution(block.conv_shortcut) if block.conv_shortcut is not None else None,
    )


def _attention(block: Any) -> Attention:
    _expect(type(block) is DiffusersAttention)
    unusual = (block.spatial_norm, block.norm_q, block.norm_k, block.norm_cross)
    _expect(block.heads == 1 and block.residual_connection and block.rescale_output_factor == 1)
    _expect(all(not part for part in unusual) and block.group_norm is not None)
    return Attention(
        _norm(block.group_norm),
        *(_linear(part) for part in (block.to_q, block.to_k, block.to_v, block.to_out[0])),
    )


def _upsample(block: Any) -> Upsample:
    _expect(type(block) is Upsample2D and block.interpolate and block.use_conv and not block.use_conv_transpose)
    _expect(block.norm is None)
    conv = _convolution(block.conv)
    _expect(conv.halo == 1)
    if conv.weight.dtype is torch.float16:  # folded taps round more than float16's own noise
        return Upsample(conv.weight, conv.bias, folded=False)
    return Upsample(fold(conv.weight), conv.bias)


def _downsample(block: Any) -> Downsample:
    _expect(type(block) is Downsample2D and block.use_conv and block.padding == 0 and block.norm is None)
    conv = block.conv
    _expect(type(conv) is nn.Conv2d and conv.kernel_size == (3, 3) and conv.stride == (2, 2) and conv.groups == 1)
    return Downsample(_weight(conv.weight), _bias(conv))


def _convolution(conv: Any, norm: Any = None) -> Convolution:
    _expect(type(conv) is nn.Conv2d)
    size = conv.kernel_size[0]
    usual = conv.stride == (1, 1) and conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    _expect(usual and size in (1, 3) and conv.kernel_size == (size, size) and conv.padding == (size // 2, size // 2))
    return Convolution(_weight(conv.weight), _bias(conv), None if norm is None else _norm(norm))


def _linear(part: Any) -> Convolution:
    _expect(type(part) is nn.Linear)
    return Convolution(part.weight.data[:, :, None, None], _bias(part))


def _norm(norm: Any) -> Norm:
    _expect(type(norm) is nn.GroupNorm and norm.affine)
    return Norm(norm.num_groups, norm.eps, norm.weight.data.float(), norm.bias.data.float())


def _weight(weight: nn.Parameter) -> torch.Tensor:
    """The module's own tensor, so that there is one copy of it; channels last if the libraries are faster with that.

    On a CPU it stays as it is: each call reorders weights anyway, and the module's own code keeps its very bits.
    """
    if weight.device.type != "cpu":
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return weight.data


def _bias(part: nn.Conv2d | nn.Linear) -> torch.Tensor | None:
    return None if part.bias is None else part.bias.data


def _expect(condition: object) -> None:
    if not condition:
        raise _Unknown
