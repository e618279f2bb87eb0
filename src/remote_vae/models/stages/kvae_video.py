"""The encoder and decoder of KVAE for videos, described as the stages that `core.stream` runs.

The frames of a segment run together, as in the class, because the norms see them together. Sides and frames change as
in `stages.kvae`, by sums that are one convolution here. Every part is checked, not only the class. *Source*: diffusers'
autoencoder_kl_kvae_video.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import torch
from diffusers.models.autoencoders import autoencoder_kl_kvae_video as source

from remote_vae.core.local import Each, FrameNorm, Frames, Layer, Local, Residual, Stage
from remote_vae.core.local_frames import ThreeFrames
from remote_vae.core.stages import Convolution
from remote_vae.models.families.kvae import SEGMENT_FRAMES
from remote_vae.models.stages.kvae import beside_means, doubled
from remote_vae.models.stages.local_parts import DOUBLE, strided
from remote_vae.models.stages.parts import Unknown, before_product, beside, bias_of, expect, norm_of, weight_of

BEFORE: Final = Frames(2, repeats=True)


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder."""
    try:
        span = SEGMENT_FRAMES // int(module.config.temporal_compress_times)
        return _segments(_decoder(module.decoder), span), _segments(_encoder(module.encoder), SEGMENT_FRAMES)
    except Unknown:
        return None


def _segments(stages: Iterator[Stage], span: int) -> Local:
    """The first segment has one frame more; the last one has what is left."""
    return Local((tuple(stages),), span, first=span + 1, slow=True, cut=lambda frames: iter([[frames]]))


def _decoder(body: Any) -> Iterator[Stage]:
    expect(type(body) is source.KVAECachedDecoder3D)
    yield _layer(body.conv_in)
    yield from _middle(body)
    for index, level in reversed([*enumerate(body.up)]):
        yield from _blocks(level)
        if index > 0:
            yield from _up(level.upsample)
    yield from _normed(body.norm_out, body.conv_out)


def _encoder(body: Any) -> Iterator[Stage]:
    """The second half of what it gives is no variance, and the class makes zeros of it."""
    expect(type(body) is source.KVAECachedEncoder3D)
    yield _layer(body.conv_in)
    for index, level in enumerate(body.down):
        yield from _blocks(level)
        if index < len(body.down) - 1:
            yield from _down(level.downsample)
    yield from _middle(body)
    norm, last = _normed(body.norm_out, body.conv_out)
    kernel, bias = (part.data.clone() for part in (body.conv_out.conv.weight, body.conv_out.conv.bias))
    for part in (kernel, bias):
        part[len(part) // 2 :] = 0
    yield norm
    yield replace(last, layer=Convolution(kernel, bias, repeats=True))


def _middle(body: Any) -> Iterator[Residual]:
    yield _residual(body.mid.block_1)
    yield _residual(body.mid.block_2)


def _blocks(level: Any) -> Iterator[Residual]:
    expect(not level.attn)
    yield from map(_residual, level.block)


def _residual(block: Any) -> Residual:
    expect(type(block) is source.KVAECachedResnetBlock3D and not hasattr(block, "temb_proj"))
    expect(not hasattr(block, "conv_shortcut"))
    shortcut = (Layer(_pointwise(block.nin_shortcut)),) if hasattr(block, "nin_shortcut") else ()
    return Residual((*_normed(block.norm1, block.conv1), *_normed(block.norm2, block.conv2)), shortcut)


def _normed(norm: Any, conv: Any) -> tuple[FrameNorm, Layer]:
    """A norm, SiLU and a convolution."""
    if type(norm) is source.KVAECachedGroupNorm:
        return FrameNorm(norm_of(norm.norm_layer), together=True), _layer(conv)
    expect(type(norm) is source.KVAECachedSpatialNorm3D and not norm.add_conv)
    scaled = _pointwise(norm.conv_y), _pointwise(norm.conv_b)
    return FrameNorm(norm_of(norm.norm_layer.norm_layer), together=True, scaled=scaled), _layer(conv)


def _up(part: Any) -> Iterator[Stage]:
    """Doubled frames, to which a convolution of them is added, and doubled pixels likewise."""
    expect(type(part) is source.KVAECachedPXSUpsample and part.factor == 2)
    if part.temporal_compress:
        conv = _in_time(part.temporal_conv, 1)
        kernel = beside(conv.weight, torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1)).to(conv.weight.dtype)
        yield Each(_later_doubled, conv.channels, frames=DOUBLE)
        yield Layer(Convolution(kernel, conv.bias), frames=BEFORE)
    yield Layer(doubled(_in_space(part.spatial_conv), part.linear))


def _down(part: Any) -> Iterator[Stage]:
    """Means of pixels, to which a convolution of them is added, and means of frames likewise."""
    expect(type(part) is source.KVAECachedPXSDownsample and part.factor == 2)
    conv = _in_space(part.spatial_conv)
    kernel, bias = beside_means(conv), conv.bias
    if not part.temporal_compress:
        yield strided(*before_product(kernel, bias, part.linear), mirrors=True)
        return
    yield strided(kernel.to(conv.weight.dtype), bias_of(conv), mirrors=True)
    pairs = _in_time(part.temporal_conv, 2)
    weight = beside(pairs.weight.flatten(2), torch.tensor([0.0, 0.5, 0.5]))
    yield ThreeFrames()
    yield Layer(Convolution(*before_product(weight.flatten(1)[..., None, None], pairs.bias, part.linear)))


def _later_doubled(rows: torch.Tensor, new: bool) -> torch.Tensor:
    """Two frames of each, apart from the first one of the clip; one frame alone stays one."""
    return rows.repeat_interleave(2, 0)[int(new) :] if len(rows) > 1 else rows


def _layer(part: Any) -> Layer:
    """A convolution in time and space that repeats edges and the first frame."""
    conv = _causal(part, (3, 3, 3), 1)
    return Layer(Convolution(weight_of(conv.weight), bias_of(conv), repeats=True), frames=BEFORE)


def _in_time(part: Any, stride: int) -> Convolution:
    conv = _causal(part, (3, 1, 1), stride)
    return Convolution(weight_of(conv.weight), bias_of(conv))


def _causal(part: Any, size: tuple[int, int, int], stride: int) -> Any:
    expect(type(part) is source.KVAECachedCausalConv3d and part.time_pad == 2)
    conv = part.conv
    expect(type(conv) is source.KVAESafeConv3d and conv.kernel_size == size and conv.stride == (stride, 1, 1))
    expect(conv.padding == (0, 0, 0) and conv.dilation == (1, 1, 1) and conv.groups == 1 and conv.bias is not None)
    expect((part.height_pad, part.width_pad) == (size[1] // 2, size[2] // 2))
    return conv


def _in_space(conv: Any) -> Any:
    expect(type(conv) is source.KVAESafeConv3d and conv.kernel_size == (1, 3, 3) and conv.padding == (0, 1, 1))
    return conv


def _pointwise(conv: Any) -> Convolution:
    expect(type(conv) is source.KVAESafeConv3d and conv.kernel_size == conv.stride == (1, 1, 1) and conv.groups == 1)
    return Convolution(weight_of(conv.weight)[:, :, 0], bias_of(conv))
