"""The encoder and decoder of Cosmos 1.0, described as the stages that `core.stream` runs.

Both attend along time at each position, so that the map before this attention is stored. Wavelets, and patches without
them, are products with a matrix. Every part is checked, not only the class. *Source*: diffusers' autoencoder_kl_cosmos.
"""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

import torch
from diffusers.models.autoencoders import autoencoder_kl_cosmos as source
from einops import rearrange
from torch.nn import functional

from remote_vae.core.local import Attention, Each, FrameNorm, Frames, Layer, Local, Residual, Stage
from remote_vae.core.local_frames import ThreeFrames
from remote_vae.core.stages import Convolution, Downsample, Norm
from remote_vae.core.time_attention import TimeAttention
from remote_vae.models.stages.local_parts import DOUBLE, HALF, Cut, divided, each_of, folded, later_doubled, unfolded
from remote_vae.models.stages.parts import Unknown, bias_of, expect, norm_of, upsampled, weight_of

BEFORE: Final = Frames(2, repeats=True)


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder."""
    try:
        decoder = divided(_decoder(module.decoder, module.post_quant_conv))
        group, patch = module.config.temporal_compression_ratio, module.config.patch_size
        encoder = divided(_encoder(module.encoder, module.quant_conv), group, _cut(group, patch))
        return replace(decoder, slow=True), replace(encoder, slow=True)
    except Unknown:
        return None


def _decoder(body: Any, before: Any) -> Iterator[Stage | TimeAttention]:
    expect(type(body) is source.CosmosDecoder3d)
    yield Layer(_pointwise(before))
    yield from _projection(body.conv_in)
    yield from _middle(body.mid_block)
    for block in body.up_blocks:
        expect(type(block) is source.CosmosUpBlock3d)
        yield from _attending(block)
        for part in block.upsamplers or ():
            yield from _up(part)
    yield FrameNorm(_norm(body.norm_out))
    yield from _projection(body.conv_out)
    yield from _pixels(body.unpatch_embed, body.conv_out.conv_t.weight)


def _encoder(body: Any, after: Any) -> Iterator[Stage | TimeAttention]:
    expect(type(body) is source.CosmosEncoder3d)
    yield from _patches(body.patch_embed, body.conv_in.conv_s.weight)
    yield from _projection(body.conv_in)
    for block in body.down_blocks:
        expect(type(block) is source.CosmosDownBlock3d)
        yield from _attending(block)
        for part in block.downsamplers or ():
            yield from _down(part)
    yield from _middle(body.mid_block)
    yield FrameNorm(_norm(body.norm_out))
    yield from _projection(body.conv_out)
    yield Layer(_pointwise(after))


def _middle(block: Any) -> Iterator[Stage | TimeAttention]:
    expect(type(block) is source.CosmosMidBlock3d)
    yield _residual(block.resnets[0])
    for attention, temporal, resnet in zip(block.attentions, block.temp_attentions, block.resnets[1:], strict=True):
        yield _attention(attention)
        yield _in_time(temporal)
        yield _residual(resnet)


def _attending(block: Any) -> Iterator[Stage | TimeAttention]:
    """Residual blocks, after each of which frames may be attended to, and then times."""
    for resnet, attention, temporal in zip(block.resnets, block.attentions, block.temp_attentions, strict=True):
        yield _residual(resnet)
        if attention is not None:
            yield _attention(attention)
        if temporal is not None:
            yield _in_time(temporal)


def _attention(part: Any) -> Attention:
    return Attention(*_attended(part, source.CosmosSpatialAttentionProcessor2_0))


def _in_time(part: Any) -> TimeAttention:
    return TimeAttention(*_attended(part, source.CosmosTemporalAttentionProcessor2_0))


def _attended(part: Any, kind: type) -> tuple[Norm, Convolution, Convolution, Convolution, Convolution]:
    expect(type(part) is source.CosmosCausalAttention and type(part.processor) is kind)
    expect(part.num_attention_heads == 1)
    query, key, value, out = map(_pointwise, (part.to_q, part.to_k, part.to_v, part.to_out[0]))
    return _norm(part.norm), query, key, value, out


def _residual(block: Any) -> Residual:
    expect(type(block) is source.CosmosResnetBlock3d)
    first, second = (FrameNorm(_norm(part)) for part in (block.norm1, block.norm2))
    main: tuple[Stage, ...] = (first, *_projection(block.conv1), second, *_projection(block.conv2))
    if type(block.conv_shortcut) is torch.nn.Identity:
        return Residual(main)
    return Residual(main, (Layer(_pointwise(block.conv_shortcut)),))


def _up(part: Any) -> Iterator[Stage]:
    """Doubled frames and doubled pixels, each with a convolution of them added."""
    expect(type(part) is source.CosmosUpsample3d)
    if part.temporal_upsample:
        conv = _in_three(part.conv1, 1)
        yield Each(later_doubled, conv.channels, frames=DOUBLE)
        yield Residual((Layer(conv, frames=BEFORE),))
    if part.spatial_upsample:
        plain = _in_space(part.conv2, 1, 1)
        same = each_of(_nearest, plain.channels, DOUBLE)
        yield Residual((Layer(upsampled(plain)),), (same,))
    if part.temporal_upsample or part.spatial_upsample:
        yield Layer(_pointwise(part.conv3))


def _down(part: Any) -> Iterator[Stage]:
    """Means of pixels and means of frames, each with a convolution added."""
    expect(type(part) is source.CosmosDownsample3d)
    if part.spatial_downsample:
        plain = _in_space(part.conv1, 2, 0)
        means = each_of(lambda rows: functional.avg_pool2d(rows, 2), plain.channels, HALF)
        yield Residual((Layer(Downsample(plain.weight, plain.bias)),), (means,))
    if part.temporal_downsample:
        conv = _in_three(part.conv2, 2)
        weight = conv.weight.flatten(1)[..., None, None]  # taps in time are channels
        yield Residual((ThreeFrames(), Layer(Convolution(weight, conv.bias))), (_means_of_frames(conv.channels),))
    if part.spatial_downsample or part.temporal_downsample:
        yield Layer(_pointwise(part.conv3))


def _nearest(rows: torch.Tensor) -> torch.Tensor:
    return rows.repeat_interleave(2, 2).repeat_interleave(2, 3)


def _means_of_frames(channels: int) -> Each:
    def found(rows: torch.Tensor, new: bool) -> torch.Tensor:
        later = rows[int(new) :]
        return torch.cat([rows[: int(new)], (later[::2] + later[1::2]) / 2])

    return Each(found, channels, frames=HALF)


def _patches(part: Any, like: torch.Tensor) -> Iterator[Stage]:
    """Pixels of a patch become channels. The first frame is a patch by itself, as often as it takes."""
    expect(type(part) is source.CosmosPatchEmbed3d and part.patch_method == "haar")
    patch, channels = part.patch_size, like.shape[1]
    yield Each(folded(patch, patch), channels, Fraction(1, patch), Fraction(1, patch))
    yield _product(_wavelets(patch, channels, like.device).t() / patch**3, like)


def _pixels(part: Any, like: torch.Tensor) -> Iterator[Stage]:
    """Channels become pixels of a patch. The first patch gives its last frame only."""
    expect(type(part) is source.CosmosUnpatcher3d and part.patch_method == "haar")
    patch, channels = part.patch_size, like.shape[0]
    yield _product(_wavelets(patch, channels, like.device), like)
    yield Each(unfolded(patch, patch), channels // patch**3, Fraction(patch), Fraction(patch))
    yield Each(lambda rows, new: rows[patch - 1 :] if new else rows, channels // patch**3)


def _wavelets(patch: int, channels: int, device: torch.device) -> torch.Tensor:
    """What each channel adds to each pixel of a patch: 1 or -1, or 0 in other colours. *Shapes*: [pixels,channels]."""
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], device=device)
    cube = torch.kron(torch.kron(pair, pair), pair)
    found = torch.eye(channels, device=device).view(channels, -1, patch, patch, patch)
    while found.shape[-1] > 1:  # sums and differences, and then those of the sums and differences
        found = rearrange(found, "n c (t a) (p b) (q d) -> n (a b d) c t p q", a=2, b=2, d=2)
        found = torch.einsum("ks,nsctpq->nkctpq", cube, found).flatten(1, 2)
    return found.flatten(1)


def _product(weight: torch.Tensor, like: torch.Tensor) -> Layer:
    return Layer(Convolution(weight.to(like.dtype).contiguous()[..., None, None], None))


def _cut(group: int, patch: int) -> Cut:
    """Frames beyond whole groups count if they come to the last patch of a group. It is filled up as wavelets do it."""

    def found(frames: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        rest = (len(frames) - 1) % group
        whole = frames[: len(frames) - rest]
        if rest <= group - patch:
            yield [whole]
        else:
            yield [whole, frames[_mirrored(len(frames), patch)[-group:]]]

    return found


def _mirrored(count: int, patch: int) -> list[int]:
    """Which frames make up the patches: each level of wavelets takes pairs, and mirrors its last items."""
    items = [[frame] for frame in (*[0] * patch, *range(1, count))]
    while len(items[0]) < patch:
        items += items[-2:-1] if len(items) % 2 else []
        items = [one + other for one, other in zip(items[::2], items[1::2], strict=True)]
    return [frame for item in items for frame in item]


def _norm(part: Any) -> Norm:
    """A norm of single frames."""
    expect(type(part) is source.CosmosCausalGroupNorm and part.num_groups == part.norm.num_groups == 1)
    return norm_of(part.norm)


def _projection(part: Any) -> Iterator[Layer]:
    expect(type(part) is source.CosmosConvProjection3d)
    yield Layer(_in_space(part.conv_s, 1, 1))
    yield Layer(_in_three(part.conv_t, 1), frames=BEFORE)


def _in_space(conv: Any, stride: int, padding: int) -> Convolution:
    expect(_usual(conv) and conv.kernel_size == (1, 3, 3) and conv.stride == (1, stride, stride))
    expect(conv.spatial_pad == (padding,) * 4)
    return Convolution(weight_of(conv.weight)[:, :, 0], bias_of(conv))


def _in_three(conv: Any, stride: int) -> Convolution:
    """Three taps in time, before which the first frame is repeated."""
    expect(_usual(conv) and conv.kernel_size == (3, 1, 1) and conv.stride == (stride, 1, 1))
    expect(not any(conv.spatial_pad) and conv.temporal_pad == 3 - stride)
    return Convolution(weight_of(conv.weight), bias_of(conv))


def _pointwise(conv: Any) -> Convolution:
    expect(_usual(conv) and conv.kernel_size == conv.stride == (1, 1, 1) and not any(conv.spatial_pad))
    return Convolution(weight_of(conv.weight)[:, :, 0], bias_of(conv))


def _usual(conv: Any) -> bool:
    kind = type(conv) is source.CosmosCausalConv3d and conv.pad_mode == "constant"
    return kind and conv.padding == (0, 0, 0) and conv.dilation == (1, 1, 1) and conv.groups == 1
