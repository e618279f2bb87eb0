"""The encoder and decoder of the tiny previews of videos, described as the stages that `core.stream` runs.

Every part is checked, not only the class. An architecture that is not recognised gives None; the model then runs by its
own code. *Source*: the module of these previews, `remote_vae.models.previews.taehv`.
"""

from collections.abc import Iterator
from fractions import Fraction
from math import prod
from typing import Any

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional

from remote_vae.core.executor import Arguments
from remote_vae.core.local import Each, Layer, Local, Near, Residual, Stage
from remote_vae.core.local_frames import LeaveOut, WithBefore
from remote_vae.models.previews.taehv import Clamp, Grow, Memory, Pool, SuperMemory
from remote_vae.models.stages.local_parts import DOUBLE, Function, each_of, layer_of
from remote_vae.models.stages.parts import Unknown, convolution_of, expect


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder."""
    try:
        return _decoder(module), _encoder(module)
    except (Unknown, AttributeError):
        return None


def _decoder(module: Any) -> Local:
    """What is left out of the output depends on how many frames a latent has."""
    group, clip, patch = module.temporal_compression_ratio, module.clip, module.patch
    layers = tuple(_parts(module.decoder, module.config.latent_channels))
    # Frames after the last layer that makes or remembers some do not depend on each other.
    apart = 1 + max(number for number, stage in enumerate(layers) if isinstance(stage, Residual) or _grows(stage))
    pixels = each_of(lambda rows: _to_signed(functional.pixel_shuffle(rows, patch)), 3, Fraction(patch))

    def of_frames(count: int) -> Local:
        first = 0 if module.even_whole and count % 2 == 0 else group - 1
        left_out = LeaveOut(first, group * (clip or count))
        return Local(((*layers[:apart], left_out, *layers[apart:], pixels),), grows=True, told=told)

    def told(latent: torch.Tensor, arguments: Arguments) -> tuple[torch.Tensor, Local]:
        return latent, of_frames(latent.shape[2])

    return of_frames(1)


def _encoder(module: Any) -> Local:
    patch, channels = module.patch, 3 * module.patch**2
    unit = each_of(lambda rows: functional.pixel_unshuffle(rows / 2 + 0.5, patch), channels, Fraction(1, patch))
    group, clip, dropped = module.temporal_compression_ratio, module.clip, module.dropped
    expect(group == prod(module.config.encoder_strides) and (clip is None or dropped < clip))
    ahead = group - 1 if clip else 0  # black frames before each clip

    def cut(frames: torch.Tensor) -> Iterator[list[torch.Tensor]]:
        """Clips whose last frame is repeated; a latent that would be dropped is not computed."""
        count = len(frames)
        step = clip * group - ahead if clip else count
        black = torch.full_like(frames[:1], -1)
        for start in range(0, count, step):
            latents = -(-count // group)
            if clip and count > 1:
                latents = clip - dropped if start + step >= count else clip
            most = latents * group - ahead
            own = frames[start : start + most]
            last = own[-1:].expand(most - len(own), -1, -1, -1)
            yield [black.expand(ahead, -1, -1, -1), own, last]

    stages = (unit, *_parts(module.encoder, channels))
    return Local((stages,), group, joins=True, cut=cut)


def _parts(layers: nn.Sequential, channels: int) -> Iterator[Stage]:
    """Layers one after another; an upsampling goes together with the convolution after it."""
    doubled = False
    for layer in layers:
        match layer:
            case nn.Upsample():
                expect(layer.scale_factor == 2 and layer.mode == "nearest" and not doubled)
                doubled = True
            case nn.Conv2d():
                channels = layer.out_channels
                yield layer_of(layer, doubled=doubled)
                doubled = False
            case Pool():
                given, channels = channels * layer.stride, layer.conv.out_channels
                yield Each(_side_by_side(layer.stride), given, frames=Fraction(1, layer.stride))
                yield Layer(convolution_of(layer.conv))
            case Grow():  # before an upsampling, which treats pixels alike
                channels = layer.conv.out_channels // layer.stride
                yield Layer(convolution_of(layer.conv))
                yield Each(_one_by_one(layer.stride), channels, frames=Fraction(layer.stride))
            case _:
                expect(not doubled)
                yield from _of_frame(layer, channels)
                channels //= 4 if isinstance(layer, nn.PixelShuffle) else 1
    expect(not doubled)


def _of_frame(layer: nn.Module, channels: int) -> Iterator[Stage]:
    match layer:
        case Memory():
            yield Residual((WithBefore(), *_parts(layer.conv, 2 * channels)))
            yield each_of(torch.relu_, channels)
        case SuperMemory():
            wide, *narrow = layer.conv
            yield Residual((WithBefore(), _of_channels(wide), *_parts(nn.Sequential(*narrow), 2 * channels)))
        case nn.ReLU():
            yield each_of(torch.relu_, channels)
        case nn.PixelShuffle():
            expect(layer.upscale_factor == 2)
            yield each_of(layer, channels // 4, DOUBLE)
        case _:
            expect(isinstance(layer, Clamp))
            yield each_of(layer, channels)


def _of_channels(conv: Any) -> Near:
    """A convolution of each channel by itself."""
    side = conv.kernel_size[0]
    expect(conv.groups == conv.in_channels == conv.out_channels and conv.padding_mode == "zeros" and side % 2 == 1)
    expect(conv.kernel_size == (side, side) and conv.padding == (side // 2, side // 2))
    expect(conv.stride == conv.dilation == (1, 1))
    halo = side // 2

    def found(window: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        given = functional.pad(window, (0, 0, top, bottom)) if top or bottom else window
        return functional.conv2d(given, conv.weight, conv.bias, padding=(0, halo), groups=conv.groups)

    return Near(found, halo, conv.out_channels)


def _grows(stage: Stage) -> bool:
    return isinstance(stage, Each) and stage.frames > 1


def _side_by_side(stride: int) -> Function:
    return lambda rows, new: rearrange(rows, "(f s) c h w -> f (s c) h w", s=stride)


def _one_by_one(stride: int) -> Function:
    return lambda rows, new: rearrange(rows, "f (s c) h w -> (f s) c h w", s=stride)


def _to_signed(unit: torch.Tensor) -> torch.Tensor:
    return 2 * unit.clamp(0, 1) - 1
