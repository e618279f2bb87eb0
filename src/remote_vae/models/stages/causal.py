"""The encoders and decoders of Wan, Qwen-Image and Qwen-Image 2.1, described as the stages that `core.stream` runs.

Every part is checked, not only the class. An architecture that is not recognised gives None; the model then runs by its
own code. *Source*: diffusers' AutoencoderKLWan, from which AutoencoderKLQwenImage is copied, and
AutoencoderKLQwenImage21, which has its structure with flat convolutions.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from inspect import signature
from typing import Any, Final

import torch
from torch import nn

from remote_vae.core.local import Attention, Each, Frames, Layer, Local, Residual, Stage
from remote_vae.core.local_frames import DoubleFrames, HalveFrames
from remote_vae.core.stages import Convolution, Downsample
from remote_vae.models.stages.local_parts import last_of, norm_of, patchified, unpatchified
from remote_vae.models.stages.parts import Unknown, bias_of, expect, upsample_of, weight_of

GROUP: Final = 4  # frames that the encoder takes together, after the first one


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder with post_quant_conv, and the encoder with quant_conv."""
    try:
        patch = getattr(module.config, "patch_size", None) or 1
        return _decoder(module, patch), _encoder(module, patch)
    except (Unknown, AttributeError):
        return None


def _decoder(module: Any, patch: int) -> Local:
    body = module.decoder
    head = [_layer(module.post_quant_conv), _layer(body.conv_in), *_middle(body.mid_block)]
    rest = [stage for block in body.up_blocks for stage in _up(block)]
    last = last_of(_layer(body.conv_out, body.norm_out))
    channels = last[-1].layer.channels // patch**2
    patches = [Each(unpatchified(patch), channels, sides=Fraction(patch))] if patch > 1 else []
    return Local((tuple(head), (*rest, *last, *patches, Each(_clamped, channels))))


def _encoder(module: Any, patch: int) -> Local:
    body = module.encoder
    first = _layer(body.conv_in)
    patches = [Each(patchified(patch), first.layer.weight.shape[1], sides=Fraction(1, patch))] if patch > 1 else []
    down = [stage for block in body.down_blocks for stage in _down(block)]
    tail = (*_middle(body.mid_block), _layer(body.conv_out, body.norm_out), _layer(module.quant_conv))
    return Local(((*patches, first, *down), tail), GROUP)


def _up(block: Any) -> Iterator[Stage]:
    """A level of a decoder."""
    several = getattr(block, "upsamplers", None) or ()
    one = getattr(block, "upsampler", None)
    samplers = several if one is None else (one,)
    stages = [*map(_residual, block.resnets), *(stage for part in samplers for stage in _upsample(part))]
    short = getattr(block, "avg_shortcut", None)
    if short is None:
        yield from stages
        return
    times = Fraction(short.factor_s)
    again = Each(_of_module(short), short.out_channels, sides=times, frames=Fraction(short.factor_t))
    yield Residual(tuple(stages), (again,))


def _down(block: Any) -> Iterator[Stage]:
    """A level of an encoder, or a part of one."""
    if hasattr(block, "avg_shortcut"):
        short = block.avg_shortcut
        stages = [*map(_residual, block.resnets), *(_downsample(block.downsampler) if block.downsampler else ())]
        sides, frames = Fraction(1, short.factor_s), Fraction(1, short.factor_t)
        yield Residual(tuple(stages), (Each(_of_module(short), short.out_channels, sides, frames),))
    elif hasattr(block, "resample"):
        yield from _downsample(block)
    elif hasattr(block, "to_qkv"):
        yield _attention(block)
    else:
        yield _residual(block)


def _middle(block: Any) -> Iterator[Stage]:
    expect(len(block.resnets) == len(block.attentions) + 1)
    yield _residual(block.resnets[0])
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            yield _attention(attention)
        yield _residual(resnet)


def _residual(block: Any) -> Residual:
    expect(isinstance(block.nonlinearity, nn.SiLU))
    short = block.conv_shortcut
    stages = () if isinstance(short, nn.Identity) else (_layer(short),)
    return Residual((_layer(block.conv1, block.norm1), _layer(block.conv2, block.norm2)), stages)


def _attention(block: Any) -> Attention:
    channels = block.proj.out_channels
    weights, biases = block.to_qkv.weight.data.split(channels), block.to_qkv.bias.data.split(channels)
    query, key, value = (Convolution(weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return Attention(norm_of(block.norm), query, key, value, Convolution(block.proj.weight.data, block.proj.bias.data))


def _upsample(part: Any) -> Iterator[Stage]:
    expect(part.mode in ("upsample2d", "upsample3d"))
    if part.mode == "upsample3d" and not _is_flat(part.time_conv):
        yield DoubleFrames(_convolution(part.time_conv))
    expect(part.resample[0].scale_factor == (2.0, 2.0))
    yield Layer(upsample_of(part.resample[1]))


def _downsample(part: Any) -> Iterator[Stage]:
    expect(part.mode in ("downsample2d", "downsample3d"))
    padding, conv = part.resample
    expect(padding.padding == (0, 1, 0, 1) and conv.kernel_size == (3, 3) and conv.stride == (2, 2))
    yield Layer(Downsample(weight_of(conv.weight), bias_of(conv)))
    if part.mode == "downsample3d" and not _is_flat(part.time_conv):
        time = part.time_conv
        expect(time.kernel_size == (3, 1, 1) and time.stride == (2, 1, 1) and not any(time._padding))
        yield HalveFrames(time.weight.data, bias_of(time))


def _layer(conv: Any, norm: Any = None) -> Layer:
    layer = _convolution(conv)
    return Layer(layer, None if norm is None else norm_of(norm), silu=norm is not None, frames=Frames(layer.taps - 1))


def _convolution(conv: Any) -> Convolution:
    *time, height, side = conv.kernel_size
    expect(isinstance(conv, nn.Conv3d | nn.Conv2d) and height == side and side in (1, 3) and conv.groups == 1)
    expect({*conv.stride, *conv.dilation} == {1} and not any(conv.padding))
    expect(tuple(conv._padding) == (*[side // 2] * 4, *(part for taps in time for part in (taps - 1, 0))))
    weight = weight_of(conv.weight)
    return Convolution(weight[:, :, 0] if time == [1] else weight, bias_of(conv))


def _is_flat(conv: Any) -> bool:
    """Of a model for one frame, which leaves out its convolutions in time."""
    expect(isinstance(conv, nn.Conv3d | nn.Conv2d))
    return isinstance(conv, nn.Conv2d)


def _of_module(part: nn.Module) -> Callable[[torch.Tensor, bool], torch.Tensor]:
    """A part without weights, by its own code."""
    takes_new = "first_chunk" in signature(part.forward).parameters

    def found(rows: torch.Tensor, new: bool) -> torch.Tensor:
        video = rows.transpose(0, 1)[None]
        result: torch.Tensor = part(video, new) if takes_new else part(video)
        return result[0].transpose(0, 1)

    return found


def _clamped(rows: torch.Tensor, new: bool) -> torch.Tensor:
    return rows.clamp_(-1, 1)
