"""The encoder and decoder of a causal VidTok, described as the stages that `core.stream` runs.

The class works on copies of the first frame, and drops what they become; here the first frame is there once. The
decoder interpolates between frames, so all of them run together. Every part is checked, not only the class. *Source*:
diffusers' autoencoder_vidtok.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from diffusers.models.autoencoders import autoencoder_vidtok as source
from torch import nn
from torch.nn import functional

from remote_vae.core.local import Attention, Each, Frames, Layer, Local, Residual, Stage
from remote_vae.core.local_frames import ThreeFrames
from remote_vae.core.stages import Convolution, Downsample
from remote_vae.core.stream_layer import empty
from remote_vae.models.stages.local_parts import DOUBLE, each_of
from remote_vae.models.stages.parts import Unknown, bias_of, convolution_of, expect, upsample_of, weight_of

BEFORE: Final = Frames(2, repeats=True)


def describe(module: Any) -> tuple[Local, Local | None] | None:
    """The decoder and the encoder. What quantises a latent has no description, so that such an encoder has none."""
    try:
        expect(module.is_causal and not module.use_tiling)
        group = module.temporal_compression_ratio
        expect(group == 2 ** len(module.decoder.tempo_us))
        decoder, encoder = Local(_decoder(module.decoder)), Local(_encoder(module.encoder), group)
        return decoder, encoder if module.regularizer == "kl" else None
    except Unknown:
        return None


def _decoder(body: Any) -> tuple[tuple[Stage, ...], ...]:
    expect(type(body) is source.VidTokDecoder3D and type(body.nonlinearity) is nn.SiLU)
    stages: list[Stage] = []
    for level, in_time in zip(reversed(body.up), reversed(body.up_temporal), strict=True):
        stages += _blocks(level, in_time)
        if hasattr(level, "upsample"):
            expect(type(level.upsample) is source.VidTokUpsample2D)
            stages.append(Layer(upsample_of(level.upsample.conv)))
        if hasattr(in_time, "upsample"):
            stages += _more_frames(in_time.upsample)
    return (_causal(body.conv_in), *_middle(body.mid)), (*stages, *_last(body))


def _encoder(body: Any) -> tuple[tuple[Stage, ...], ...]:
    expect(type(body) is source.VidTokEncoder3D and type(body.nonlinearity) is nn.SiLU)
    stages: list[Stage] = [_causal(body.conv_in)]
    for level, in_time in zip(body.down, body.down_temporal, strict=True):
        stages += _blocks(level, in_time)
        if hasattr(level, "downsample"):
            stages.append(_fewer_pixels(level.downsample))
        if hasattr(in_time, "downsample"):
            stages += _fewer_frames(in_time.downsample)
    return tuple(stages), (*_middle(body.mid), *_last(body))


def _blocks(level: Any, in_time: Any) -> Iterator[Residual]:
    """Residual blocks of single frames, each before one that mixes frames."""
    expect(not level.attn and not in_time.attn)
    for flat, temporal in zip(level.block, in_time.block, strict=True):
        yield from (_residual(flat), _residual(temporal))


def _middle(part: Any) -> Iterator[Stage]:
    yield _residual(part.block_1)
    block = part.attn_1
    expect(type(block) is source.VidTokAttnBlock)
    layers = (_causal(conv).layer for conv in (block.q, block.k, block.v, block.proj_out))
    query, key, value, out = (
        Convolution(layer.weight[:, :, 0], layer.bias) for layer in layers if isinstance(layer, Convolution)
    )
    yield Attention(_norm(block.norm), query, key, value, out)
    yield _residual(part.block_2)


def _last(body: Any) -> tuple[Stage, ...]:
    return _norm(body.norm_out), _causal(body.conv_out, silu=True)


def _residual(block: Any) -> Residual:
    expect(type(block) is source.VidTokResnetBlock and type(block.nonlinearity) is nn.SiLU)
    expect(not hasattr(block, "temb_proj") and not hasattr(block, "conv_shortcut"))
    norms, layers = (
        map(_norm, (block.norm1, block.norm2)),
        (_layer(conv, silu=True) for conv in (block.conv1, block.conv2)),
    )
    main = (next(norms), next(layers), next(norms), next(layers))
    return Residual(main, (_layer(block.nin_shortcut),) if hasattr(block, "nin_shortcut") else ())


def _norm(part: Any) -> Each:
    """The channels of a position, less their mean and divided by their deviation."""
    expect(type(part) is source.VidTokLayerNorm)
    norm = part.norm
    expect(type(norm) is nn.LayerNorm and norm.elementwise_affine and len(norm.normalized_shape) == 1)
    shape, weight, bias = norm.normalized_shape, norm.weight.data.float(), norm.bias.data.float()

    def found(rows: torch.Tensor) -> torch.Tensor:
        wide = functional.layer_norm(rows.permute(0, 2, 3, 1).float(), shape, weight, bias, norm.eps)
        return wide.to(norm.weight.dtype).permute(0, 3, 1, 2)

    return each_of(found, *shape)


def _layer(conv: Any, *, silu: bool = False) -> Layer:
    return Layer(convolution_of(conv), silu=silu) if type(conv) is nn.Conv2d else _causal(conv, silu=silu)


def _causal(part: Any, *, silu: bool = False) -> Layer:
    """A convolution in time, or in time and space, that repeats the first frame."""
    conv, taps = part.conv, part.conv.kernel_size[0]
    expect(set(conv.stride) == set(conv.dilation) == {1} and conv.groups == 1)
    expect(len(set(conv.kernel_size)) == 1 and taps in (1, 3) and part.time_pad == taps - 1)
    expect(set(conv.padding) == {0} and conv.padding_mode == "zeros")
    if type(part) is source.VidTokCausalConv1d:
        weight = weight_of(conv.weight)[..., None, None]
    else:
        expect(type(part) is source.VidTokCausalConv3d and part.pad_mode == "constant")
        expect(part.spatial_padding == (taps // 2,) * 4 + (0, 0))
        weight = weight_of(conv.weight)
    return Layer(Convolution(weight, bias_of(conv)), silu=silu, frames=BEFORE if taps == 3 else Frames())


def _more_frames(part: Any) -> Iterator[Stage]:
    """Frames between frames, mixed with a convolution of them. The first frame stands for all its copies."""
    expect(type(part) is source.VidTokUpsample3D and part.is_causal and part.enable_cached)
    expect(part.interpolation_mode == "trilinear")
    conv, found = part.conv.conv, _causal(part.conv).layer
    yield Each(_interpolated, found.channels, frames=DOUBLE, ahead=True)
    share = part.mix_factor.detach().to(conv.weight.device).sigmoid()
    weight, bias = _scaled(found, 1 - share)
    weight[:, :, -1, 1, 1].diagonal().add_(share)
    yield Layer(Convolution(weight, bias), frames=BEFORE)


def _interpolated(rows: torch.Tensor, new: bool) -> torch.Tensor:
    """A quarter of a frame before or after is mixed in; frames after the first are not mixed with it."""
    first, rest = rows[:1], rows[1:]
    between = empty((2 * len(rest), *rest.shape[1:]), rest)
    torch.lerp(rest, torch.cat([rest[:1], rest[:-1]]), 0.25, out=between[::2])
    torch.lerp(rest, torch.cat([rest[1:], rest[-1:]]), 0.25, out=between[1::2])
    return torch.cat([first, between])


def _fewer_pixels(part: Any) -> Layer:
    expect(type(part) is source.VidTokDownsample2D)
    conv = part.conv
    expect(conv.kernel_size == (3, 3) and conv.stride == (2, 2) and conv.padding == (0, 0))
    expect(conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros")
    return Layer(Downsample(weight_of(conv.weight), bias_of(conv)))


def _fewer_frames(part: Any) -> Iterator[Stage]:
    """The mean of each pair of frames and of the frame before it, mixed with a convolution of them."""
    expect(type(part) is source.VidTokDownsample3D and part.is_causal and type(part.conv) is source.VidTokCausalConv3d)
    conv = part.conv.conv
    expect(conv.kernel_size == (3, 3, 3) and conv.stride == (2, 1, 1) and part.conv.time_pad == 1)
    expect(part.conv.spatial_padding == (1, 1, 1, 1, 0, 0) and part.conv.pad_mode == "constant")
    expect(conv.dilation == (1, 1, 1) and conv.groups == 1 and conv.padding == (0, 0, 0))
    share = part.mix_factor.detach().to(conv.weight.device).sigmoid()
    weight, bias = _scaled(Convolution(conv.weight.detach(), bias_of(conv)), 1 - share)
    for tap in weight[..., 1, 1].unbind(2):
        tap.diagonal().add_(share / 3)
    yield ThreeFrames()
    yield Layer(Convolution(weight.flatten(1, 2), bias))


def _scaled(layer: Any, factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    return layer.weight * factor, None if layer.bias is None else layer.bias * factor
