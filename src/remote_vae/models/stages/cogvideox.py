"""The encoder and decoder of CogVideoX, described as the stages that `core.stream` runs.

Some frames run together, as in the class, because the norms see them together. The decoder's norms are scaled by the
latent at the nearest position, and the factors are computed at the latent's size. Every part is checked, not only the
class. *Source*: diffusers' autoencoder_kl_cogvideox.
"""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.autoencoders import autoencoder_kl_cogvideox as source
from diffusers.models.downsampling import CogVideoXDownsample3D
from diffusers.models.upsampling import CogVideoXUpsample3D
from torch import nn

from remote_vae.core.local import Each, FrameNorm, Frames, Layer, Local, Residual, Stage
from remote_vae.core.stages import Convolution, Downsample
from remote_vae.models.stages.local_parts import DOUBLE, HALF
from remote_vae.models.stages.parts import Unknown, bias_of, expect, norm_of, upsample_of, weight_of


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder."""
    try:
        expect(module.quant_conv is None and module.post_quant_conv is None)
        decoder, encoder = module.decoder, module.encoder
        expect(type(decoder) is source.CogVideoXDecoder3D and type(encoder) is source.CogVideoXEncoder3D)
        decoding = (_layer(decoder.conv_in), *_middle(decoder.mid_block), *_ups(decoder.up_blocks), *_last(decoder))
        encoding = (_layer(encoder.conv_in), *_downs(encoder.down_blocks), *_middle(encoder.mid_block), *_last(encoder))
        return (
            Local((decoding,), module.num_latent_frames_batch_size, joins=True),
            Local((encoding,), module.num_sample_frames_batch_size, joins=True),
        )
    except Unknown:
        return None


def _middle(block: Any) -> Iterator[Stage]:
    expect(type(block) is source.CogVideoXMidBlock3D)
    return map(_residual, block.resnets)


def _ups(blocks: Any) -> Iterator[Stage]:
    for block in blocks:
        expect(type(block) is source.CogVideoXUpBlock3D)
        yield from map(_residual, block.resnets)
        for part in block.upsamplers or ():
            expect(type(part) is CogVideoXUpsample3D)
            layer = Layer(upsample_of(part.conv))
            yield layer
            if part.compress_time:  # the convolution sees each frame by itself, so it need not run for the copies
                yield Each(_doubled, layer.layer.channels, frames=DOUBLE)


def _downs(blocks: Any) -> Iterator[Stage]:
    for block in blocks:
        expect(type(block) is source.CogVideoXDownBlock3D)
        yield from map(_residual, block.resnets)
        for part in block.downsamplers or ():
            conv = part.conv
            expect(type(part) is CogVideoXDownsample3D and type(conv) is nn.Conv2d and conv.groups == 1)
            expect(conv.kernel_size == (3, 3) and conv.stride == (2, 2) and conv.padding == (0, 0))
            expect(conv.dilation == (1, 1))
            if part.compress_time:
                yield Each(_halved, conv.in_channels, frames=HALF)
            yield Layer(Downsample(weight_of(conv.weight), bias_of(conv)))


def _last(body: Any) -> tuple[Stage, ...]:
    expect(type(body.conv_act) is nn.SiLU)
    return _norm(body.norm_out), _layer(body.conv_out)


def _residual(block: Any) -> Residual:
    expect(type(block) is source.CogVideoXResnetBlock3D and type(block.nonlinearity) is nn.SiLU)
    main = (_norm(block.norm1), _layer(block.conv1), _norm(block.norm2), _layer(block.conv2))
    if block.in_channels == block.out_channels:
        return Residual(main)
    expect(not block.use_conv_shortcut)
    return Residual(main, (Layer(_pointwise(block.conv_shortcut)),))


def _norm(part: Any) -> FrameNorm:
    if type(part) is nn.GroupNorm:
        return FrameNorm(norm_of(part), together=True)
    expect(type(part) is source.CogVideoXSpatialNorm3D)
    return FrameNorm(norm_of(part.norm_layer), True, (_pointwise(part.conv_y.conv), _pointwise(part.conv_b.conv)))


def _layer(part: Any) -> Layer:
    """A convolution in time and space that repeats the first frame."""
    expect(type(part) is source.CogVideoXCausalConv3d and part.pad_mode != "replicate")
    conv = part.conv
    expect(conv.kernel_size == (3, 3, 3) and conv.stride == conv.dilation == (1, 1, 1) and conv.groups == 1)
    expect(conv.padding == (0, 1, 1) and conv.padding_mode == "zeros")
    return Layer(Convolution(weight_of(conv.weight), bias_of(conv)), frames=Frames(2, repeats=True))


def _pointwise(conv: Any) -> Convolution:
    expect(conv.kernel_size == (1, 1, 1) and conv.stride == (1, 1, 1) and conv.groups == 1)
    return Convolution(weight_of(conv.weight)[:, :, 0], bias_of(conv))


def _doubled(rows: torch.Tensor, new: bool) -> torch.Tensor:
    """Two frames of each, apart from the first one of an odd number."""
    alone = len(rows) % 2
    return torch.cat([rows[:alone], rows[alone:].repeat_interleave(2, 0)]) if len(rows) > 1 else rows


def _halved(rows: torch.Tensor, new: bool) -> torch.Tensor:
    """The mean of each pair, apart from the first one of an odd number."""
    alone = len(rows) % 2
    return torch.cat([rows[:alone], (rows[alone::2] + rows[alone + 1 :: 2]) / 2])
