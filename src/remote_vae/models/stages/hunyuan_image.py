"""The encoder and decoder of HunyuanImage 2.1, described as the stages that `core.strips` runs.

Every part is checked, not only the class. *Source*: diffusers' autoencoder_kl_hunyuanimage.
"""

from collections.abc import Callable, Iterator
from typing import Any

from diffusers.models.autoencoders import autoencoder_kl_hunyuanimage as source
from torch import nn

from remote_vae.core.stages import Attention, Program, Residual, Shuffle, Stage
from remote_vae.models.stages.parts import Unknown, both, convolution_of, expect, norm_of


def describe(module: Any) -> tuple[Program, Program] | None:
    """The decoder and the encoder."""
    return both(describe_decoder(module), describe_encoder(module))


def describe_decoder(module: Any) -> Program | None:
    """The decoder; None for an architecture that the stages cannot describe."""
    return _described(module.decoder, source.HunyuanImageDecoder2D, _decoder)


def describe_encoder(module: Any) -> Program | None:
    """The encoder; None for an architecture that the stages cannot describe."""
    return _described(module.encoder, source.HunyuanImageEncoder2D, _encoder)


def _described(body: Any, kind: type, stages: Callable[[Any], Iterator[Stage]]) -> Program | None:
    try:
        expect(type(body) is kind)
        expect(type(body.nonlinearity) is nn.SiLU)
        return Program(tuple(stages(body)))
    except Unknown:
        return None


def _decoder(body: Any) -> Iterator[Stage]:
    yield Shuffle(convolution_of(body.conv_in))
    yield from _middle(body.mid_block)
    for block in body.up_blocks:
        if type(block) is source.HunyuanImageUpsample:
            yield Shuffle(convolution_of(block.conv), up=2)
        else:
            yield _residual(block)
    yield convolution_of(body.conv_out, body.norm_out)


def _encoder(body: Any) -> Iterator[Stage]:
    yield convolution_of(body.conv_in)
    for block in body.down_blocks:
        if type(block) is source.HunyuanImageDownsample:
            yield Shuffle(convolution_of(block.conv), down=2)
        else:
            yield _residual(block)
    yield from _middle(body.mid_block)
    yield Shuffle(convolution_of(body.conv_out, body.norm_out))


def _middle(block: Any) -> Iterator[Stage]:
    expect(type(block) is source.HunyuanImageMidBlock)
    yield _residual(block.resnets[0])
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        yield _attention(attention)
        yield _residual(resnet)


def _residual(block: Any) -> Residual:
    """The class adds its input even if it has another width, so only equal widths can be run at all."""
    expect(type(block) is source.HunyuanImageResnetBlock and type(block.nonlinearity) is nn.SiLU)
    expect(block.conv_shortcut is None)
    return Residual(convolution_of(block.conv1, block.norm1), convolution_of(block.conv2, block.norm2))


def _attention(block: Any) -> Attention:
    expect(type(block) is source.HunyuanImageAttentionBlock)
    query, key, value, out = map(convolution_of, (block.to_q, block.to_k, block.to_v, block.proj))
    return Attention(norm_of(block.norm), query, key, value, out)
