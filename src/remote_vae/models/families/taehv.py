"""Previews of videos: tiny VAEs that take the normalised latents of a video model and approximate its frames.

Their weights are published as files, and not as folders on the Hub.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from remote_vae.core.recipe import Affine, Constants, Rearrange, Recipe
from remote_vae.models.families.cogvideox import COGVIDEOX
from remote_vae.models.families.hunyuan_video import HUNYUANVIDEO, KANDINSKY5_VIDEO
from remote_vae.models.families.ltx import LTX
from remote_vae.models.families.ltx2 import LTX2
from remote_vae.models.families.minimax_h3 import MEAN, MINIMAX_H3, STD
from remote_vae.models.families.qwen_image import QWEN_IMAGE
from remote_vae.models.families.wan import FIBO, MEAN_22, STD_22, WAN_21, WAN_22
from remote_vae.models.family import Family, Model, channels_of
from remote_vae.values import FrameRule, Frames

_FILES: Final = "https://github.com/madebyollin/taehv/raw/main/safetensors"

# fmt: off
MEAN_21: Final = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)
STD_21: Final = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
)
# fmt: on
_WAN_21: Final = Constants(latents_mean=MEAN_21, latents_std=STD_21)
_WAN_22: Final = Constants(latents_mean=MEAN_22, latents_std=STD_22)
_HUNYUAN: Final = Constants(scaling_factor=0.476986)
_HUNYUAN_15: Final = Constants(scaling_factor=1.03682)
_H3: Final = Constants(latents_mean=MEAN, latents_std=STD)
_UNKNOWN: Final = Constants()  # the weights of the previewed model hold its statistics
# The pipelines of LTX-2 hand out what the decoder takes; the latents of their steps are normalised and packed.
_LTX2_STEPS: Final = replace(LTX2, layouts=LTX.layouts)
_16: Final = {"latent_channels": 16}
_32: Final = {"latent_channels": 32, "patch_size": 2}
_48: Final = {"latent_channels": 48, "patch_size": 2}
_128: Final = {
    "latent_channels": 128,
    "patch_size": 4,
    "encoder_strides": (2, 2, 2),
    "decoder_strides": (2, 2, 2),
}
_24: Final = {"latent_channels": 24, "patch_size": 2, "clip": 5, "dropped": 3}
_SUPER: Final = {"widths": (512, 256, 128, 64), "super_decoder": True}


def recipe_of_preview(name: str, previewed: Recipe, constants: Constants, channels: int) -> Recipe:
    """The previewed model's own way, but that the VAE takes normalised latents."""
    affine, kept = Affine(literal=constants), (Affine, Rearrange)
    ops = [affine if isinstance(op, Affine) else op for op in previewed.ops if isinstance(op, kept)] or [affine]
    fits: dict[str, Any] = {"channels": (channels,), "ignores": (), "needs": ()}
    return replace(previewed, name=name, ops=tuple(ops), posterior="mode", seed=None, **fits)


def _preview(
    name: str, file: str, previewed: Recipe, constants: Constants, config: Mapping[str, object], *aliases: str
) -> Model:
    recipe = recipe_of_preview(name, previewed, constants, channels_of(config))
    return Model(name, recipe, None, "float16", aliases, None, config, file=f"{_FILES}/{file}.safetensors")


def _of_cogvideox(name: str, scaling_factor: float) -> Model:
    """Unlike the others, this preview takes what the decoder of the previewed VAE takes."""
    config = {**_16, "even_whole": True, "scaling_factor": scaling_factor}
    recipe = replace(COGVIDEOX, name=name, posterior="mode")
    return Model(name, recipe, None, "bfloat16", subfolder=None, config=config, file=f"{_FILES}/taecvx.safetensors")


def _frames(module: Any) -> Frames:
    group, config = module.temporal_compression_ratio, module.config
    if config.clip:
        return Frames(group, rule=FrameRule.CLIPS, span=config.clip, dropped=config.dropped)
    return Frames(group, rule=FrameRule.PAIRS if config.even_whole else FrameRule.CAUSAL)


def with_the_pipelines_names(module: Any) -> None:
    """What the pipelines read from the config of the VAE that is previewed; the constants are neutral."""
    config = module.config
    module.register_to_config(
        z_dim=config.latent_channels,
        latents_mean=[0.0] * config.latent_channels,
        latents_std=[1.0] * config.latent_channels,
        scaling_factor=config.scaling_factor or 1.0,
        scale_factor_spatial=module.spatial_compression_ratio,
        scale_factor_temporal=module.temporal_compression_ratio,
        temporal_compression_ratio=module.temporal_compression_ratio,
        block_out_channels=config.widths,
        temperal_downsample=[stride > 1 for stride in config.decoder_strides],
    )


_MODELS: Final = (
    _preview("taew2.1", "taew2_1", WAN_21, _WAN_21, _16, "taew2_1"),
    _preview("taew2.1-image", "taew2_1", QWEN_IMAGE, _WAN_21, _16),
    _preview("taew2.2", "taew2_2", WAN_22, _WAN_22, _48, "taew2_2"),
    _preview("taew2.2-image", "taew2_2", FIBO, _WAN_22, _48),
    _preview("taew2.2-super", "taew2_2_super", WAN_22, _WAN_22, {**_48, **_SUPER}, "taew2_2_super"),
    _preview("taehv", "taehv", HUNYUANVIDEO, _HUNYUAN, _16),
    _preview("taehv-kandinsky5", "taehv", KANDINSKY5_VIDEO, _HUNYUAN, _16),
    _preview("taehv1.5", "taehv1_5", HUNYUANVIDEO, _HUNYUAN_15, _32, "taehv1_5"),
    _preview("taehv1.5-super", "taehv1_5_super", HUNYUANVIDEO, _HUNYUAN_15, {**_32, **_SUPER}, "taehv1_5_super"),
    _of_cogvideox("taecvx", 0.7),
    _of_cogvideox("taecvx-2b", 1.15258426),
    _preview("taeltx2", "taeltx_2", _LTX2_STEPS, _UNKNOWN, _128, "taeltx_2"),
    _preview("taeltx2.3", "taeltx2_3", _LTX2_STEPS, _UNKNOWN, _128, "taeltx2_3"),
    _preview("taeh3", "taeh3", MINIMAX_H3, _H3, _24),
)

FAMILIES: Final = (
    Family(
        "TAEHV",
        _MODELS,
        deterministic=True,
        prepare=with_the_pipelines_names,
        stages="taehv",
        decode=lambda module, latent: module.decode(latent),
        encode=lambda module, pixels: module.encode(pixels),
        frames=_frames,
        module="remote_vae.models.previews.taehv",
    ),
)
