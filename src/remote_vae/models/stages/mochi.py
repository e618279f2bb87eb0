"""The decoder of Mochi 1, described as the stages that `core.stream` runs.

Every part is checked, not only the class. The encoder attends along time at each position and runs by its own code.
*Source*: diffusers' autoencoder_kl_mochi.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from diffusers.models.autoencoders import autoencoder_kl_mochi as source
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXCausalConv3d
from einops import rearrange
from torch import nn

from remote_vae.core.local import Each, FrameNorm, Frames, Layer, Local, Residual, Stage
from remote_vae.core.stages import Convolution
from remote_vae.models.stages.local_parts import Function
from remote_vae.models.stages.parts import Unknown, bias_of, expect, linear_of, norm_of, weight_of


def describe(module: Any) -> tuple[Local, None] | None:
    """The decoder."""
    try:
        expect(not module.use_framewise_decoding)  # frames of the class's own batches do not see those before them
        dropped = module.temporal_compression_ratio - 1 if module.drop_last_temporal_frames else 0
        return Local((tuple(_decoder(module.decoder, dropped)),), grows=True), None
    except Unknown:
        return None


def _decoder(body: Any, dropped: int) -> Iterator[Stage]:
    expect(type(body) is source.MochiDecoder3D and type(body.nonlinearity) is nn.SiLU)
    conv = body.conv_in
    expect(type(conv) is nn.Conv3d and conv.kernel_size == conv.stride == (1, 1, 1) and conv.groups == 1)
    yield Layer(Convolution(weight_of(conv.weight)[:, :, 0], bias_of(conv)))
    yield from _middle(body.block_in)
    for block in body.up_blocks:
        yield from _up(block)
    yield from _middle(body.block_out)
    last = linear_of(body.proj_out)
    yield Layer(last, silu=True)
    if dropped:
        yield Each(lambda rows, new: rows[dropped:] if new else rows, last.channels)


def _middle(block: Any) -> Iterator[Stage]:
    expect(type(block) is source.MochiMidBlock3D and not any(block.attentions))
    yield from map(_residual, block.resnets)


def _up(block: Any) -> Iterator[Stage]:
    """Channels become frames, rows and columns."""
    expect(type(block) is source.MochiUpBlock3D)
    yield from map(_residual, block.resnets)
    layer, frames, side = linear_of(block.proj), block.temporal_expansion, block.spatial_expansion
    yield Layer(layer)
    channels = layer.channels // (frames * side**2)
    yield Each(_unfolded(frames, side), channels, Fraction(side), Fraction(frames))


def _unfolded(frames: int, side: int) -> Function:
    def found(rows: torch.Tensor, new: bool) -> torch.Tensor:
        wide = rearrange(rows, "f (c t p q) h w -> (f t) (h p) (w q) c", t=frames, p=side, q=side)
        return wide.permute(0, 3, 1, 2)

    return found


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
