"""The encoder and decoder of Mochi 1, described as the stages that `core.stream` runs.

The encoder attends along time at each position, so that the map before each attention is stored. Every part is checked,
not only the class. *Source*: diffusers' autoencoder_kl_mochi.
"""

from collections.abc import Iterator
from fractions import Fraction
from math import prod
from typing import Any

from diffusers.models.attention_processor import Attention, MochiVaeAttnProcessor2_0
from diffusers.models.autoencoders import autoencoder_kl_mochi as source
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from diffusers.models.normalization import LpNorm
from torch import nn

from remote_vae.core.local import Each, FrameNorm, Frames, Layer, Local, Residual, Stage
from remote_vae.core.stages import Convolution
from remote_vae.core.time_attention import TimeAttention
from remote_vae.models.stages.local_parts import divided, each_of, folded, unfolded
from remote_vae.models.stages.parts import Unknown, bias_of, expect, linear_of, norm_of, weight_of


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder."""
    try:
        expect(not module.use_framewise_decoding)  # frames of the class's own batches do not see those before them
        ratio = module.temporal_compression_ratio
        dropped = ratio - 1 if module.drop_last_temporal_frames else 0
        decoder = Local((tuple(_decoder(module.decoder, dropped)),), grows=True)
        return decoder, divided(_encoder(module.encoder), ratio)
    except Unknown:
        return None


def _decoder(body: Any, dropped: int) -> Iterator[Stage]:
    expect(type(body) is source.MochiDecoder3D and type(body.nonlinearity) is nn.SiLU)
    conv = body.conv_in
    expect(type(conv) is nn.Conv3d and conv.kernel_size == conv.stride == (1, 1, 1) and conv.groups == 1)
    yield Layer(Convolution(weight_of(conv.weight)[:, :, 0], bias_of(conv)))
    yield from _residuals(body.block_in)
    for block in body.up_blocks:
        yield from _up(block)
    yield from _residuals(body.block_out)
    last = linear_of(body.proj_out)
    yield Layer(last, silu=True)
    if dropped:
        yield Each(lambda rows, new: rows[dropped:] if new else rows, last.channels)


def _encoder(body: Any) -> Iterator[Stage | TimeAttention]:
    expect(type(body) is source.MochiEncoder3D and type(body.nonlinearity) is nn.SiLU)
    features, first = body.fourier_features, linear_of(body.proj_in)
    expect(type(features) is source.FourierFeatures)
    yield each_of(lambda rows: features(rows[:, :, None])[:, :, 0], first.weight.shape[1])
    yield Layer(first)
    expect(type(body.block_in) is type(body.block_out) is source.MochiMidBlock3D)
    yield from _attending(body.block_in)
    for block in body.down_blocks:
        expect(type(block) is source.MochiDownBlock3D)
        yield from _down(block.conv_in)
        yield from _attending(block)
    yield from _attending(body.block_out)
    yield _norm(body.norm_out)
    yield Layer(linear_of(body.proj_out))


def _down(part: Any) -> Iterator[Stage]:
    """Frames, rows and columns become channels. The first frame is there as often as a convolution reads frames."""
    expect(type(part) is CogVideoXCausalConv3d and part.pad_mode == "replicate")
    conv = part.conv
    frames, side, width = conv.kernel_size
    expect(conv.stride == conv.kernel_size and side == width and conv.dilation == (1, 1, 1) and conv.groups == 1)
    expect(conv.padding == (0, 0, 0) and tuple(part.time_causal_padding) == (0, 0, 0, 0, frames - 1, 0))
    channels = conv.in_channels * prod(conv.kernel_size)
    yield Each(folded(frames, side), channels, Fraction(1, side), Fraction(1, frames))
    yield Layer(Convolution(conv.weight.data.flatten(1)[:, :, None, None], bias_of(conv)))


def _attending(block: Any) -> Iterator[Stage | TimeAttention]:
    """Residual blocks, after which an encoder attends."""
    for resnet, norm, attention in zip(block.resnets, block.norms, block.attentions, strict=True):
        yield _residual(resnet)
        if attention is not None:
            yield _attention(norm, attention)


def _attention(norm: Any, part: Any) -> TimeAttention:
    expect(type(part) is Attention and type(part.processor) is MochiVaeAttnProcessor2_0 and part.is_causal)
    expect(not part.residual_connection and part.rescale_output_factor == 1)
    for length in (part.norm_q, part.norm_k):
        expect(type(length) is LpNorm and (length.p, length.dim, length.eps) == (2, -1, part.norm_q.eps))
    query, key, value, out = map(linear_of, (part.to_q, part.to_k, part.to_v, part.to_out[0]))
    return TimeAttention(_norm(norm).norm, query, key, value, out, part.heads, part.norm_q.eps)


def _residuals(block: Any) -> Iterator[Stage]:
    expect(type(block) is source.MochiMidBlock3D and not any(block.attentions))
    yield from map(_residual, block.resnets)


def _up(block: Any) -> Iterator[Stage]:
    """Channels become frames, rows and columns."""
    expect(type(block) is source.MochiUpBlock3D)
    yield from map(_residual, block.resnets)
    layer, frames, side = linear_of(block.proj), block.temporal_expansion, block.spatial_expansion
    yield Layer(layer)
    channels = layer.channels // (frames * side**2)
    yield Each(unfolded(frames, side), channels, Fraction(side), Fraction(frames))


def _residual(block: Any) -> Residual:
    expect(type(block) is source.MochiResnetBlock3D and type(block.nonlinearity) is nn.SiLU)
    return Residual((_norm(block.norm1), _layer(block.conv1), _norm(block.norm2), _layer(block.conv2)))


def _norm(part: Any) -> FrameNorm:
    expect(type(part) is source.MochiChunkedGroupNorm3D)
    return FrameNorm(norm_of(part.norm_layer))


def _layer(part: Any) -> Layer:
    """A convolution in time and space that repeats the edges."""
    expect(type(part) is CogVideoXCausalConv3d and part.pad_mode == "replicate")
    conv = part.conv
    expect(conv.kernel_size == (3, 3, 3) and conv.stride == conv.dilation == (1, 1, 1) and conv.groups == 1)
    expect(conv.padding == (0, 0, 0) and tuple(part.time_causal_padding) == (1, 1, 1, 1, 2, 0))
    return Layer(Convolution(weight_of(conv.weight), bias_of(conv), repeats=True), frames=Frames(2, repeats=True))
