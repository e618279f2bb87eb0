"""The decoder of Stable Video Diffusion, described as the stages that `core.stream` runs.

Spatial blocks see each frame by itself, temporal ones the frames before and after it, and their norms all frames. So
all frames run together, row by row between the norms. Every part is checked, not only the class. The encoder takes
frame by frame in its own code. *Source*: diffusers' autoencoder_kl_temporal_decoder.
"""

from collections.abc import Iterator
from typing import Any

from diffusers.models.autoencoders import autoencoder_kl_temporal_decoder as source
from diffusers.models.resnet import AlphaBlender, ResnetBlock2D, SpatioTemporalResBlock, TemporalResnetBlock
from diffusers.models.unets import unet_3d_blocks as blocks
from diffusers.models.upsampling import Upsample2D
from torch import nn

from remote_vae.core.local import Attention, FrameNorm, Frames, Layer, Local, Residual, Stage
from remote_vae.core.stages import Convolution
from remote_vae.models.stages.local_parts import each_of
from remote_vae.models.stages.parts import (
    Unknown,
    attention_of,
    bias_of,
    convolution_of,
    expect,
    norm_of,
    upsample_of,
    weight_of,
)


def describe(module: Any) -> tuple[Local, None] | None:
    """The decoder. Attention is a section of its own, because it takes frame by frame."""
    try:
        body = module.decoder
        expect(type(body) is source.TemporalDecoder and type(body.conv_act) is nn.SiLU)
        middle = body.mid_block
        expect(type(middle) is blocks.MidBlockTemporalDecoder)
        stages: list[Stage] = [Layer(convolution_of(body.conv_in)), *_mixed(middle.resnets[0])]
        sections: list[tuple[Stage, ...]] = []
        for resnet, attention in zip(middle.resnets[1:], middle.attentions, strict=False):  # as the class does
            sections += [tuple(stages), (_attention(attention),)]
            stages = [*_mixed(resnet)]
        stages += [stage for block in body.up_blocks for stage in _up(block)]
        stages += [
            FrameNorm(norm_of(body.conv_norm_out)),
            Layer(convolution_of(body.conv_out)),
            _in_time(body.time_conv_out),
        ]
        return Local((*sections, tuple(stages)), slow=True), None
    except Unknown:
        return None


def _up(block: Any) -> Iterator[Stage]:
    expect(type(block) is blocks.UpBlockTemporalDecoder)
    for resnet in block.resnets:
        yield from _mixed(resnet)
    for part in block.upsamplers or ():
        expect(type(part) is Upsample2D and part.use_conv and not part.use_conv_transpose and part.norm is None)
        yield Layer(upsample_of(part.conv))


def _mixed(block: Any) -> tuple[Residual, Residual]:
    """A block of each frame, and a share of what one along time adds."""
    expect(type(block) is SpatioTemporalResBlock)
    spatial, temporal, mixer = block.spatial_res_block, block.temporal_res_block, block.time_mixer
    expect(type(spatial) is ResnetBlock2D and spatial.time_emb_proj is None and spatial.output_scale_factor == 1)
    expect(spatial.upsample is None and spatial.downsample is None)
    expect(type(temporal) is TemporalResnetBlock and temporal.time_emb_proj is None and temporal.conv_shortcut is None)
    expect(type(spatial.nonlinearity) is type(temporal.nonlinearity) is nn.SiLU)
    expect(type(mixer) is AlphaBlender and mixer.merge_strategy == "learned" and mixer.switch_spatial_to_temporal_mix)
    first, second = (convolution_of(conv) for conv in (spatial.conv1, spatial.conv2))
    short = () if spatial.conv_shortcut is None else (Layer(convolution_of(spatial.conv_shortcut)),)
    share = mixer.mix_factor.data
    return (
        Residual(
            (FrameNorm(norm_of(spatial.norm1)), Layer(first), FrameNorm(norm_of(spatial.norm2)), Layer(second)), short
        ),
        Residual(
            (
                *(FrameNorm(norm_of(temporal.norm1), together=True), _in_time(temporal.conv1)),
                *(FrameNorm(norm_of(temporal.norm2), together=True), _in_time(temporal.conv2)),
                each_of(lambda rows: rows.mul_(share.sigmoid()), temporal.out_channels),
            )
        ),
    )


def _in_time(conv: Any) -> Layer:
    """A convolution along time that reads zeros beyond the first and the last frame."""
    expect(type(conv) is nn.Conv3d and conv.kernel_size == (3, 1, 1) and conv.padding == (1, 0, 0) and conv.groups == 1)
    expect(conv.stride == conv.dilation == (1, 1, 1) and conv.padding_mode == "zeros")
    return Layer(Convolution(weight_of(conv.weight), bias_of(conv)), frames=Frames(1, 1))


def _attention(block: Any) -> Attention:
    found = attention_of(block)
    return Attention(found.norm, found.query, found.key, found.value, found.out)
