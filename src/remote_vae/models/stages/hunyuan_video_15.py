"""The encoder and decoder of HunyuanVideo 1.5, described as the stages that `core.stream` runs.

Every part is checked, not only the class. *Source*: diffusers' autoencoder_kl_hunyuanvideo15.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

import torch
from diffusers.models.autoencoders import autoencoder_kl_hunyuanvideo15 as source
from einops import rearrange
from torch import nn

from remote_vae.core.local import Attention, Each, Frames, Layer, Local, Residual, Stage
from remote_vae.core.stages import Convolution
from remote_vae.models.stages.local_parts import HALF, Function, each_of, last_of, norm_of
from remote_vae.models.stages.parts import Unknown, bias_of, expect, weight_of

TWO: Final = Fraction(2)


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder."""
    try:
        return _decoder(module.decoder), _encoder(module.encoder, module.temporal_compression_ratio)
    except Unknown:
        return None


def _decoder(body: Any) -> Local:
    expect(type(body) is source.HunyuanVideo15Decoder3D and type(body.conv_act) is nn.SiLU)
    first, repeat = _layer(body.conv_in), body.repeat
    again = each_of(lambda rows: rows.repeat_interleave(repeat, 1), first.layer.channels)
    stages: list[Stage] = []
    for block in body.up_blocks:
        expect(type(block) is source.HunyuanVideo15UpBlock3D)
        stages += [*map(_residual, block.resnets), *map(_up, block.upsamplers or ())]
    head = Residual((first,), (again,)), *_middle(body.mid_block)
    return Local((head, (*stages, *last_of(_layer(body.conv_out, body.norm_out)))))


def _encoder(body: Any, group: int) -> Local:
    expect(type(body) is source.HunyuanVideo15Encoder3D and type(body.conv_act) is nn.SiLU)
    stages: list[Stage] = [_layer(body.conv_in)]
    for block in body.down_blocks:
        expect(type(block) is source.HunyuanVideo15DownBlock3D)
        stages += [*map(_residual, block.resnets), *map(_down, block.downsamplers or ())]
    last = _layer(body.conv_out, body.norm_out)
    means = each_of(lambda rows: _means(rows, body.group_size), last.layer.channels)
    return Local((tuple(stages), (*_middle(body.mid_block), Residual((last,), (means,)))), group)


def _middle(block: Any) -> Iterator[Stage]:
    expect(type(block) is source.HunyuanVideo15MidBlock)
    yield _residual(block.resnets[0])
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            yield _attention(attention)
        yield _residual(resnet)


def _residual(block: Any) -> Residual:
    expect(type(block) is source.HunyuanVideo15ResnetBlock and type(block.nonlinearity) is nn.SiLU)
    main = _layer(block.conv1, block.norm1), _layer(block.conv2, block.norm2)
    return Residual(main, () if block.conv_shortcut is None else (Layer(_pointwise(block.conv_shortcut)),))


def _attention(block: Any) -> Attention:
    expect(type(block) is source.HunyuanVideo15AttnBlock)
    query, key, value, out = map(_pointwise, (block.to_q, block.to_k, block.to_v, block.proj_out))
    return Attention(norm_of(block.norm), query, key, value, out, causal=True)


def _up(part: Any) -> Residual:
    """Channels become rows, columns and, but for the first frame, frames."""
    expect(type(part) is source.HunyuanVideo15Upsample)
    layer, frames = _layer(part.conv), 2 if part.add_temporal_upsample else 1
    channels, repeats = layer.layer.channels // (4 * frames), part.repeats
    main = Each(_unfolded(frames, channels), channels, TWO, Fraction(frames))
    return Residual((layer, main), (Each(_repeated(frames, repeats), channels, TWO, Fraction(frames)),))


def _down(part: Any) -> Residual:
    """Rows, columns and, after the first frame, pairs of frames become channels; the shortcut takes means of them."""
    expect(type(part) is source.HunyuanVideo15Downsample)
    layer, frames = _layer(part.conv), 2 if part.add_temporal_downsample else 1
    channels, group = layer.layer.channels * 4 * frames, part.group_size
    expect(frames == 1 or group > 1)
    main = Each(_folded(frames, channels), channels, HALF, Fraction(1, frames))
    return Residual((layer, main), (Each(_folded(frames, channels, group), channels, HALF, Fraction(1, frames)),))


def _unfolded(frames: int, channels: int) -> Function:
    def found(rows: torch.Tensor, new: bool) -> torch.Tensor:
        if frames == 1:
            return _wide(rows, 1)
        later = _wide(rows[int(new) :], frames)
        return torch.cat([_wide(rows[:1], 1)[:, :channels], later]) if new else later

    return found


def _repeated(frames: int, repeats: int) -> Function:
    """As `_unfolded`, for the shortcut: each channel stands for several."""

    def found(rows: torch.Tensor, new: bool) -> torch.Tensor:
        if frames == 1:
            return _wide(rows.repeat_interleave(repeats, 1), 1)
        later = _wide(rows[int(new) :], frames).repeat_interleave(repeats, 1)
        return torch.cat([_wide(rows[:1], 1).repeat_interleave(repeats // 2, 1), later]) if new else later

    return found


def _folded(frames: int, channels: int, group: int = 1) -> Function:
    """The first frame stands for both frames of a pair."""

    def found(rows: torch.Tensor, new: bool) -> torch.Tensor:
        if frames == 1:
            return _means(_narrow(rows, 1), group)
        later = _means(_narrow(rows[int(new) :], frames), group)
        if not new:
            return later
        first = _narrow(rows[:1], 1)
        one = first.repeat(1, channels // first.shape[1], 1, 1) if group == 1 else _means(first, group // 2)
        return torch.cat([one, later])

    return found


def _wide(rows: torch.Tensor, frames: int) -> torch.Tensor:
    found = rearrange(rows, "f (t p q c) h w -> (f t) (h p) (w q) c", t=frames, p=2, q=2)
    return found.permute(0, 3, 1, 2)


def _narrow(rows: torch.Tensor, frames: int) -> torch.Tensor:
    found = rearrange(rows, "(f t) c (h p) (w q) -> f h w (t p q c)", t=frames, p=2, q=2)
    return found.permute(0, 3, 1, 2)


def _means(rows: torch.Tensor, group: int) -> torch.Tensor:
    return rows if group == 1 else rows.reshape(len(rows), rows.shape[1] // group, group, *rows.shape[2:]).mean(2)


def _layer(part: Any, norm: Any = None) -> Layer:
    """A convolution in time and space that repeats the edges, after the norm and SiLU if there is a norm."""
    expect(type(part) is source.HunyuanVideo15CausalConv3d and part.pad_mode == "replicate")
    conv = part.conv
    expect(conv.kernel_size == (3, 3, 3) and conv.stride == conv.dilation == (1, 1, 1) and conv.groups == 1)
    expect(conv.padding == (0, 0, 0) and tuple(part.time_causal_padding) == (1, 1, 1, 1, 2, 0))
    layer = Convolution(weight_of(conv.weight), bias_of(conv), repeats=True)
    found = None if norm is None else norm_of(norm)
    return Layer(layer, found, silu=norm is not None, frames=Frames(2, repeats=True))


def _pointwise(conv: Any) -> Convolution:
    expect(type(conv) is nn.Conv3d and conv.kernel_size == (1, 1, 1) and conv.stride == (1, 1, 1) and conv.groups == 1)
    return Convolution(weight_of(conv.weight)[:, :, 0], bias_of(conv))
