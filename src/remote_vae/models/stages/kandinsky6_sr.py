"""The encoder and decoder of Kandinsky 6's super-resolution, described as the stages that `core.stream` runs.

Its norms see one position, and those of the decoder are scaled by what convolutions make of the latent. Every part is
checked, not only the class. *Source*: diffusers' autoencoder_kandinsky6_sr.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import torch
from diffusers.models.autoencoders import autoencoder_kandinsky6_sr as source
from torch.nn import functional

from remote_vae.core.filters import laid_for
from remote_vae.core.local import Each, Frames, Layer, Local, Norm, Residual, Scaled, Stage
from remote_vae.core.local_frames import ThreeFrames
from remote_vae.core.stages import Convolution
from remote_vae.models.families.kandinsky6_sr import seen, shown
from remote_vae.models.stages.local_parts import DOUBLE, each_of, last_of, later_doubled, strided
from remote_vae.models.stages.parts import Unknown, before_product, beside, bias_of, expect, upsampled, weight_of

BEFORE: Final = Frames(2, repeats=True)


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder."""
    try:
        group = module.temporal_compression_ratio
        decoding, encoding = tuple(_decoder(module.decoder)), tuple(_encoder(module.encoder))
        return Local((decoding,), slow=True), Local((encoding,), group, slow=True)
    except Unknown:
        return None


def _decoder(body: Any) -> Iterator[Stage]:
    expect(type(body) is source.Kandinsky6SRDecoder3D)
    yield _layer(body.conv_in)
    yield _residual(body.mid.block_1)
    yield _residual(body.mid.block_2)
    for level in reversed(body.up):
        yield from map(_residual, level.block)
        if hasattr(level, "upsample"):
            yield from _up(level.upsample)
    *before, last = _normed(body.norm_out, body.conv_out)
    yield from before
    yield from last_of(last)
    yield each_of(shown, last.layer.channels)


def _encoder(body: Any) -> Iterator[Stage]:
    expect(type(body) is source.Kandinsky6SREncoder3D)
    yield each_of(seen, body.conv_in.conv.in_channels)
    yield _layer(body.conv_in)
    for level in body.down:
        yield from map(_residual, level.block)
        if hasattr(level, "downsample"):
            yield from _down(level.downsample)
    yield _residual(body.mid.block_1)
    yield _residual(body.mid.block_2)
    yield from _normed(body.norm_out, body.conv_out)


def _residual(block: Any) -> Residual:
    expect(type(block) is source.Kandinsky6SRResnetBlock3D)
    shortcut = (Layer(_plain(block.nin_shortcut, 1)),) if hasattr(block, "nin_shortcut") else ()
    return Residual((*_normed(block.norm1, block.conv1), *_normed(block.norm2, block.conv2)), shortcut)


def _normed(norm: Any, conv: Any) -> tuple[Layer] | tuple[Scaled, Layer]:
    """A norm, SiLU and a convolution."""
    if type(norm) is not source.Kandinsky6SRSpatialNorm3D:
        return (_layer(conv, _norm(norm)),)
    return Scaled(_norm(norm.norm_layer), (_plain(norm.conv_y, 1), _plain(norm.conv_b, 1))), _layer(conv)


def _norm(part: Any) -> Norm:
    expect(type(part) is source.Kandinsky6VAERMSNorm and part.scale == len(part.gamma) ** 0.5)
    return Norm(part.gamma.data.flatten().float())


def _up(part: Any) -> Iterator[Stage]:
    """Doubled frames and doubled pixels, to each of which a convolution of them is added."""
    expect(type(part) is source.Kandinsky6SRUpsample)
    if part.compress_time:
        conv = _in_time(part.temporal_conv, 3)
        yield Each(later_doubled, conv.channels, frames=DOUBLE)
        yield Layer(_beside_itself(conv), frames=BEFORE)
    yield Layer(upsampled(_beside_itself(_plain(part.spatial_conv, 3))))
    yield Layer(_plain(part.linear, 1))


def _beside_itself(layer: Convolution) -> Convolution:
    """A convolution to which the position that it computes is added: the last one in time, or that in the middle."""
    taps = torch.zeros(layer.weight.shape[2:])
    taps[(-1, 0, 0) if taps.ndim == 3 else (1, 1)] = 1
    return replace(layer, weight=beside(layer.weight, taps).to(layer.weight.dtype))


def _down(part: Any) -> Iterator[Stage]:
    """Means of pixels and means of frames, to each of which convolutions are added."""
    expect(type(part) is source.Kandinsky6SRDownsample)
    plain = _plain(part.spatial_conv, 3, 2)
    kernel = plain.weight.to(torch.float32, copy=True)
    for row in range(2):  # the means of the two columns of each row are channels of their own
        kernel[row::2].diagonal()[1 + row, 1:] += 0.5
    yield strided(laid_for(kernel.to(plain.weight.dtype)), plain.bias)
    if part.compress_time:
        yield ThreeFrames()
        yield Layer(Convolution(*before_product(*_pairs(*part.temporal_conv), part.linear)))
    else:
        yield Layer(_plain(part.linear, 1))


def _pairs(first: Any, second: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What makes one frame of three: two convolutions of two taps one after another, and the mean of the last two.

    *Shapes*: weight [C,3C,1,1].
    """
    one, two = _in_time(first, 2), _in_time(second, 2, 2)
    assert one.bias is not None
    assert two.bias is not None
    early, late = two.weight.float().flatten(2).unbind(2)
    taps = one.weight.float().flatten(2)
    weight = torch.einsum("om,mit->oit", early, functional.pad(taps, (0, 1)))
    weight += torch.einsum("om,mit->oit", late, functional.pad(taps, (1, 0)))
    weight.diagonal()[1:] += 0.5
    return weight.flatten(1)[..., None, None], torch.mv(early + late, one.bias.float()) + two.bias.float()


def _layer(part: Any, norm: Norm | None = None) -> Layer:
    """A convolution in time and space that repeats the first frame, after the norm and SiLU if there is a norm."""
    conv = _causal(part, (3, 3, 3), 1)
    return Layer(Convolution(weight_of(conv.weight), bias_of(conv)), norm, silu=norm is not None, frames=BEFORE)


def _in_time(part: Any, taps: int, stride: int = 1) -> Convolution:
    conv = _causal(part, (taps, 1, 1), stride)
    return Convolution(weight_of(conv.weight), bias_of(conv))


def _causal(part: Any, size: tuple[int, int, int], stride: int) -> Any:
    expect(type(part) is source.Kandinsky6SRCausalConv3d)
    conv = part.conv
    expect(type(conv) is source.Kandinsky6SRSafeConv3d and conv.kernel_size == size and conv.stride == (stride, 1, 1))
    expect(conv.padding == (0, 0, 0) and conv.dilation == (1, 1, 1) and conv.groups == 1 and conv.bias is not None)
    expect((part.time_pad, part.height_pad, part.width_pad) == (size[0] - 1, size[1] // 2, size[2] // 2))
    return conv


def _plain(conv: Any, side: int, stride: int = 1) -> Convolution:
    """A convolution of single frames."""
    expect(type(conv) is source.Kandinsky6SRSafeConv3d and conv.kernel_size == (1, side, side))
    expect(conv.stride == (1, stride, stride) and conv.padding == (0, side // 2, side // 2))
    expect(conv.dilation == (1, 1, 1) and conv.groups == 1 and conv.padding_mode == "zeros")
    return Convolution(weight_of(conv.weight)[:, :, 0], bias_of(conv))
