"""The encoder and decoder of EasyAnimate, described as the stages that `core.stream` runs.

The first frame runs by itself, and then some frames together. Norms see each frame by itself, or frames that run
together. Every part is checked, not only the class. *Source*: diffusers' autoencoder_kl_magvit.
"""

from collections.abc import Iterator
from typing import Any

from diffusers.models.autoencoders import autoencoder_kl_magvit as source
from torch import nn

from remote_vae.core.local import Each, FrameNorm, Frames, Layer, Local, Residual, Stage
from remote_vae.core.local_frames import ThreeFrames
from remote_vae.core.stages import Convolution, Downsample, Upsample
from remote_vae.models.stages.local_parts import DOUBLE, later_doubled
from remote_vae.models.stages.parts import Unknown, bias_of, expect, norm_of, weight_of


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder."""
    try:
        decoder, encoder = module.decoder, module.encoder
        expect(type(decoder) is source.EasyAnimateDecoder and type(encoder) is source.EasyAnimateEncoder)
        decoding = (
            Layer(_pointwise(module.post_quant_conv)),
            *(_layer(decoder.conv_in), *map(_residual, decoder.mid_block.convs), *_ups(decoder.up_blocks)),
            *_last(decoder),
        )
        encoding = (
            *(_layer(encoder.conv_in), *_downs(encoder.down_blocks), *map(_residual, encoder.mid_block.convs)),
            *(*_last(encoder), Layer(_pointwise(module.quant_conv))),
        )
        return (
            Local((decoding,), module.num_latent_frames_batch_size),
            Local((encoding,), module.num_sample_frames_batch_size),
        )
    except Unknown:
        return None


def _ups(blocks: Any) -> Iterator[Stage]:
    for block in blocks:
        expect(type(block) is source.EasyAnimateUpBlock3d)
        yield from map(_residual, block.convs)
        if (part := block.upsampler) is not None:
            expect(type(part) is source.EasyAnimateUpsampler3D)
            conv = _causal(part.conv, (1, 1, 1), 1)
            yield Layer(Upsample(weight_of(conv.weight), bias_of(conv), folded=False), frames=Frames(2, repeats=True))
            if part.temporal_upsample:
                expect(part.spatial_group_norm)  # otherwise frames are mixed
                yield Each(later_doubled, conv.out_channels, frames=DOUBLE)


def _downs(blocks: Any) -> Iterator[Stage]:
    for block in blocks:
        expect(type(block) is source.EasyAnimateDownBlock3D)
        yield from map(_residual, block.convs)
        if (part := block.downsampler) is not None:
            expect(type(part) is source.EasyAnimateDownsampler3D)
            step = block.temporal_downsample_factor
            conv = _causal(part.conv, (step, 2, 2), 0)
            weight, bias = weight_of(conv.weight), bias_of(conv)
            if step == 2:  # taps in time are channels
                yield ThreeFrames()
                yield Layer(Downsample(weight.flatten(1, 2), bias))
            else:
                yield Layer(Downsample(weight, bias), frames=Frames(2, repeats=True))


def _last(body: Any) -> tuple[Stage, ...]:
    expect(type(body.conv_act) is nn.SiLU)
    return _norm(body.conv_norm_out, body.spatial_group_norm), _layer(body.conv_out)


def _residual(block: Any) -> Residual:
    expect(type(block) is source.EasyAnimateResidualBlock3D and type(block.nonlinearity) is nn.SiLU)
    expect(block.output_scale_factor == 1)
    norms = (_norm(part, block.spatial_group_norm) for part in (block.norm1, block.norm2))
    main = (next(norms), _layer(block.conv1), next(norms), _layer(block.conv2))
    if type(block.shortcut) is nn.Identity:
        return Residual(main)
    return Residual(main, (Layer(_pointwise(block.shortcut)),))


def _norm(part: Any, alone: bool) -> FrameNorm:
    return FrameNorm(norm_of(part), together=not alone)


def _layer(part: Any) -> Layer:
    """A convolution in time and space that repeats the first frame."""
    conv = _causal(part, (1, 1, 1), 1)
    return Layer(Convolution(weight_of(conv.weight), bias_of(conv)), frames=Frames(2, repeats=True))


def _causal(conv: Any, stride: tuple[int, ...], padding: int) -> Any:
    expect(type(conv) is source.EasyAnimateCausalConv3d and conv.kernel_size == (3, 3, 3) and conv.stride == stride)
    expect(conv.padding == (0, padding, padding) and conv.padding_mode == "zeros")
    expect(conv.dilation == (1, 1, 1) and conv.groups == 1)
    return conv


def _pointwise(conv: Any) -> Convolution:
    expect(type(conv) is nn.Conv3d and conv.kernel_size == (1, 1, 1) and conv.stride == (1, 1, 1) and conv.groups == 1)
    return Convolution(weight_of(conv.weight)[:, :, 0], bias_of(conv))
