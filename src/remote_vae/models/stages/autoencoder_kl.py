"""A diffusers encoder or decoder, described as the stages that `core.strips` runs.

Every part is checked, not only the class. An architecture that is not recognised gives None; the model then runs by its
own code. *Source*: diffusers' Encoder, Decoder, ResnetBlock2D, Attention, Upsample2D and Downsample2D, and
of MoVQ ResnetBlockCondNorm2D and SpatialNorm.
"""

from collections.abc import Iterator
from typing import Any, Final

from diffusers.models.autoencoders.vae import Decoder, Encoder, MaskConditionDecoder
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from diffusers.models.unets.unet_2d_blocks import (
    AttnDownEncoderBlock2D,
    AttnUpDecoderBlock2D,
    DownEncoderBlock2D,
    UNetMidBlock2D,
    UpDecoderBlock2D,
)
from diffusers.models.upsampling import Upsample2D
from torch import nn

from remote_vae.core.stages import Downsample, Program, Residual, Stage, Upsample
from remote_vae.models.stages.parts import (
    Unknown,
    attention_of,
    bias_of,
    both,
    convolution_of,
    expect,
    upsample_of,
    weight_of,
)

DECODERS: Final = (Decoder, MaskConditionDecoder)  # without picture and mask, these run the same layers


def describe(module: nn.Module) -> tuple[Program, Program] | None:
    """The decoder and the encoder."""
    return both(describe_decoder(module), describe_encoder(module))


def describe_decoder(module: nn.Module) -> Program | None:
    """post_quant_conv and the decoder of an AutoencoderKL; None for other architectures."""
    return _describe(module, "decoder", DECODERS, before="post_quant_conv")


def describe_encoder(module: nn.Module) -> Program | None:
    """The encoder of an AutoencoderKL and quant_conv; None for other architectures."""
    return _describe(module, "encoder", (Encoder,), after="quant_conv")


def _describe(
    module: nn.Module, name: str, kinds: tuple[type, ...], *, before: str = "", after: str = ""
) -> Program | None:
    body, first, last = (getattr(module, part, None) for part in (name, before, after))
    if type(body) not in kinds:
        return None
    try:
        stages = [
            *([convolution_of(first)] if first is not None else []),
            *_body(body),
            *([convolution_of(last)] if last is not None else []),
        ]
    except Unknown:
        return None
    return Program(tuple(stages))


def _body(body: Any) -> Iterator[Stage]:
    yield convolution_of(body.conv_in)
    if isinstance(body, Encoder):
        for block in body.down_blocks:
            expect(type(block) in (DownEncoderBlock2D, AttnDownEncoderBlock2D))
            yield from _blocks(block)
            yield from map(_downsample, block.downsamplers or ())
    yield from _middle(body.mid_block)
    if isinstance(body, DECODERS):
        for block in body.up_blocks:
            expect(type(block) in (UpDecoderBlock2D, AttnUpDecoderBlock2D))
            yield from _blocks(block)
            yield from map(_upsample, block.upsamplers or ())
    expect(type(body.conv_act) is nn.SiLU)
    yield convolution_of(body.conv_out, body.conv_norm_out)


def _blocks(block: Any) -> Iterator[Stage]:
    """Residual blocks, each followed by attention if the level has it."""
    attentions = getattr(block, "attentions", ())
    for index, resnet in enumerate(block.resnets):
        yield _residual(resnet)
        yield from map(attention_of, attentions[index : index + 1])


def _middle(block: Any) -> Iterator[Stage]:
    if block is None:
        return
    expect(type(block) is UNetMidBlock2D)
    yield _residual(block.resnets[0])
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            yield attention_of(attention)
        yield _residual(resnet)


def _residual(block: Any) -> Residual:
    conditioned = type(block) is ResnetBlockCondNorm2D and block.time_embedding_norm == "spatial"
    expect(conditioned or (type(block) is ResnetBlock2D and block.time_emb_proj is None))
    plain = block.upsample is None and block.downsample is None
    expect(plain and block.output_scale_factor == 1 and type(block.nonlinearity) is nn.SiLU)
    return Residual(
        convolution_of(block.conv1, block.norm1),
        convolution_of(block.conv2, block.norm2),
        convolution_of(block.conv_shortcut) if block.conv_shortcut is not None else None,
    )


def _upsample(block: Any) -> Upsample:
    expect(type(block) is Upsample2D and block.interpolate and block.use_conv and not block.use_conv_transpose)
    expect(block.norm is None)
    return upsample_of(block.conv)


def _downsample(block: Any) -> Downsample:
    expect(type(block) is Downsample2D and block.use_conv and block.padding == 0 and block.norm is None)
    conv = block.conv
    expect(type(conv) is nn.Conv2d and conv.kernel_size == (3, 3) and conv.stride == (2, 2) and conv.groups == 1)
    return Downsample(weight_of(conv.weight), bias_of(conv))
