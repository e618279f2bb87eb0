"""LTX-2 and 2.3, and SANA's videos with their VAE."""

from typing import Any

import diffusers
import torch

from .case import Case
from .ltx import GROUPS, with_statistics

BLOCKS: dict[str, Any] = {
    **GROUPS,
    "block_out_channels": (8,) * 4,
    "down_block_types": ("LTX2VideoDownBlock3D",) * 4,
    "layers_per_block": (1,) * 5,
    "decoder_block_out_channels": (8, 16, 32),
    "decoder_layers_per_block": (1,) * 4,
    "decoder_causal": False,
    "scaling_factor": 0.7,
}
BLOCKS_23: dict[str, Any] = {
    "decoder_block_out_channels": (8, 16, 16, 32),
    "decoder_layers_per_block": (1,) * 5,
    "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5,
    "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
    "upsample_residual": (False,) * 4,
    "upsample_factor": (2, 2, 1, 2),
    "decoder_spatial_padding_mode": "zeros",
}
SHAPES = ((1, 128, 2, 2, 3), (2, 128, 1, 2, 3), (128, 1, 2, 3))


def tiny_ltx2(**config: Any) -> Any:
    return with_statistics(diffusers.AutoencoderKLLTX2Video(**{**BLOCKS, **config}))


def statistics(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return module.latents_mean.view(1, -1, 1, 1, 1), module.latents_std.view(1, -1, 1, 1, 1)


def batched(module: Any, z: torch.Tensor) -> torch.Tensor:
    return z if z.ndim == 5 else z[None]


def sana_video(module: Any, z: torch.Tensor) -> torch.Tensor:
    """As SanaVideoPipeline.__call__."""
    mean, std = statistics(module)
    return batched(module, z) / (1.0 / std) + mean


def sana_wm(module: Any, z: torch.Tensor) -> torch.Tensor:
    """As SanaWMPipeline._decode_latents."""
    mean, std = statistics(module)
    return batched(module, z) / module.config.scaling_factor * std + mean


def sana_wm_latent(module: Any, mode: torch.Tensor) -> torch.Tensor:
    mean, std = statistics(module)
    return (mode - mean) * module.config.scaling_factor / std


CASES = {
    "ltx2": Case(tiny_ltx2, SHAPES, (64, 96), batched, lambda module, mode: mode, frames=9),
    "ltx2.3": Case(lambda: tiny_ltx2(**BLOCKS_23), SHAPES, (64, 96), batched, lambda module, mode: mode, frames=9),
    "sana-video-720p": Case(
        tiny_ltx2,
        SHAPES,
        (64, 96),
        sana_video,
        lambda module, mode: (mode - statistics(module)[0]) * (1.0 / statistics(module)[1]),
        frames=9,
    ),
    "sana-wm": Case(tiny_ltx2, SHAPES, (64, 96), sana_wm, sana_wm_latent, frames=9),
}
