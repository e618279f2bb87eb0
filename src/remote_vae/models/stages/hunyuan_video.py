"""The encoder and decoder of HunyuanVideo, described as the stages that `core.strips` runs.

Every part is checked, not only the class. *Source*: diffusers' autoencoder_kl_hunyuan_video.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from diffusers.models.autoencoders import autoencoder_kl_hunyuan_video as source
from torch import nn

from remote_vae.core.stages import Convolution, Downsample, Program, Residual, Stage, Upsample, Windows
from remote_vae.models.stages.parts import Unknown, attention_of, bias_of, both, expect, norm_of, weight_of


def describe(module: Any) -> tuple[Program, Program] | None:
    """The decoder and the encoder."""
    return both(describe_decoder(module), describe_encoder(module))


def describe_decoder(module: Any) -> Program | None:
    """post_quant_conv and the decoder; None for an architecture that the stages cannot describe."""
    try:
        expect(type(module.decoder) is source.HunyuanVideoDecoder3D)
        stages = (_pointwise(module.post_quant_conv), *_decoder(module.decoder))
    except Unknown:
        return None
    ratio = module.temporal_compression_ratio
    length, stride = (frames // ratio for frames in _window(module))
    kept, blended = stride * ratio, module.tile_sample_min_num_frames - module.tile_sample_stride_num_frames
    return Program(stages, Windows(length, stride, kept, blended) if module.use_framewise_decoding else None)


def describe_encoder(module: Any) -> Program | None:
    """The encoder and quant_conv; None for an architecture that the stages cannot describe."""
    try:
        expect(type(module.encoder) is source.HunyuanVideoEncoder3D)
        stages = (*_encoder(module.encoder), _pointwise(module.quant_conv))
    except Unknown:
        return None
    length, stride = _window(module)
    latent, kept = (frames // module.temporal_compression_ratio for frames in (length, stride))
    return Program(stages, Windows(length, stride, kept, latent - kept) if module.use_framewise_encoding else None)


def _window(module: Any) -> tuple[int, int]:
    return module.tile_sample_min_num_frames, module.tile_sample_stride_num_frames


def _decoder(body: Any) -> Iterator[Stage]:
    yield _convolution(body.conv_in)
    yield from _middle(body.mid_block)
    for block in body.up_blocks:
        expect(type(block) is source.HunyuanVideoUpBlock3D)
        yield from map(_residual, block.resnets)
        yield from map(_upsample, block.upsamplers or ())
    yield _last(body)


def _encoder(body: Any) -> Iterator[Stage]:
    yield _convolution(body.conv_in)
    for block in body.down_blocks:
        expect(type(block) is source.HunyuanVideoDownBlock3D)
        yield from map(_residual, block.resnets)
        yield from map(_downsample, block.downsamplers or ())
    yield from _middle(body.mid_block)
    yield _last(body)


def _last(body: Any) -> Convolution:
    expect(type(body.conv_act) is nn.SiLU)
    return replace(_convolution(body.conv_out), norm=norm_of(body.conv_norm_out))


def _middle(block: Any) -> Iterator[Stage]:
    expect(type(block) is source.HunyuanVideoMidBlock3D)
    yield _residual(block.resnets[0])
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            yield replace(attention_of(attention), causal=True)
        yield _residual(resnet)


def _residual(block: Any) -> Residual:
    expect(type(block) is source.HunyuanVideoResnetBlockCausal3D and type(block.nonlinearity) is nn.SiLU)
    return Residual(
        replace(_convolution(block.conv1), norm=norm_of(block.norm1)),
        replace(_convolution(block.conv2), norm=norm_of(block.norm2)),
        None if block.conv_shortcut is None else _convolution(block.conv_shortcut),
    )


def _upsample(block: Any) -> Upsample:
    expect(type(block) is source.HunyuanVideoUpsampleCausal3D)
    in_time, *sides = block.upsample_factor
    conv = _convolution(block.conv)
    expect(tuple(sides) == (2, 2) and in_time in (1, 2) and conv.halo == 1)
    return Upsample(conv.weight, conv.bias, folded=False, repeats=True, in_time=in_time == 2)


def _downsample(block: Any) -> Downsample:
    expect(type(block) is source.HunyuanVideoDownsampleCausal3D)
    in_time, *sides = block.conv.conv.stride
    conv = _convolution(block.conv, tuple(block.conv.conv.stride))
    expect(tuple(sides) == (2, 2) and in_time in (1, 2) and conv.halo == 1)
    return Downsample(conv.weight, conv.bias, repeats=True, in_time=in_time == 2)


def _convolution(part: Any, stride: tuple[int, ...] = (1, 1, 1)) -> Convolution:
    """A convolution with as many taps in time as in rows and columns, which repeats the edges."""
    expect(type(part) is source.HunyuanVideoCausalConv3d and part.pad_mode == "replicate")
    conv, size = part.conv, part.conv.kernel_size[0]
    expect(conv.stride == stride and conv.dilation == (1, 1, 1) and conv.groups == 1 and conv.padding == (0, 0, 0))
    expect(size in (1, 3) and conv.kernel_size == (size, size, size))
    expect(part.time_causal_padding == (*[size // 2] * 4, size - 1, 0))
    weight = weight_of(conv.weight)
    return Convolution(weight if size == 3 else weight[:, :, 0], bias_of(conv), repeats=True)


def _pointwise(conv: Any) -> Convolution:
    expect(type(conv) is nn.Conv3d and conv.kernel_size == (1, 1, 1) and conv.stride == (1, 1, 1) and conv.groups == 1)
    return Convolution(weight_of(conv.weight)[:, :, 0], bias_of(conv))
