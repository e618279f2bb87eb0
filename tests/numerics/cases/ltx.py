"""LTX-Video 0.9."""

from typing import Any

import diffusers
import torch

from .case import Case, decoded

BLOCKS: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8),
    "layers_per_block": (1,) * 5,
    "decoder_layers_per_block": (1,) * 5,
    "scaling_factor": 0.7,
}
TIMESTEPS: dict[str, Any] = {  # as from 0.9.1 on, with the noise of 0.9.1 or without
    "decoder_block_out_channels": (8, 16, 32),
    "decoder_layers_per_block": (1,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (False,) * 4,
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2,) * 3,
    "timestep_conditioning": True,
}
GROUPS: dict[str, Any] = {  # as from 0.9.5 on
    "block_out_channels": (8,) * 5,
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "spatio_temporal_scaling": (True,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}


def tiny_ltx(**config: Any) -> Any:
    return with_statistics(diffusers.AutoencoderKLLTXVideo(**{**BLOCKS, **config}))


def with_statistics(module: Any) -> Any:
    """The module with statistics that are neither zero nor one, and with shares of inner noise that are not zero."""
    with torch.no_grad():
        module.latents_mean.copy_(torch.linspace(-0.7, 0.9, 128))
        module.latents_std.copy_(torch.linspace(0.6, 1.7, 128))
        for name, parameter in module.named_parameters():
            if "per_channel_scale" in name:
                parameter.uniform_(0.5, 1)
    return module


def normalised(module: Any, z: torch.Tensor) -> torch.Tensor:
    """As LTXPipeline._unpack_latents for 2 by 3 cells, and _denormalize_latents; -> [B,C,f,h,w]."""
    if z.ndim == 3:
        z = z.reshape(len(z), -1, 2, 3, 128, 1, 1, 1).permute(0, 4, 1, 5, 2, 6, 3, 7)
        z = z.flatten(6, 7).flatten(4, 5).flatten(2, 3)
    z = z if z.ndim == 5 else z[None]
    mean, std = (values.view(1, -1, 1, 1, 1) for values in (module.latents_mean, module.latents_std))
    return z * std / module.config.scaling_factor + mean


def latent(module: Any, mode: torch.Tensor) -> torch.Tensor:
    mean, std = (values.view(1, -1, 1, 1, 1) for values in (module.latents_mean, module.latents_std))
    return (mode - mean) * module.config.scaling_factor / std


def at_zero(module: Any, z: torch.Tensor) -> torch.Tensor:
    """The pipelines' default timestep, and so no noise."""
    pixels: torch.Tensor = module.decode(z, torch.zeros(len(z))).sample
    return pixels


SHAPES = ((1, 128, 2, 2, 3), (2, 18, 128), (1, 6, 128), (128, 1, 2, 3), (2, 128, 1, 2, 3))
CASES = {
    "ltx": Case(tiny_ltx, SHAPES, (64, 96), normalised, latent, frames=9, decode=decoded),
    "ltx-0.9.1": Case(lambda: tiny_ltx(**TIMESTEPS), SHAPES, (64, 96), normalised, latent, frames=9, decode=at_zero),
    "ltx-0.9.5": Case(
        lambda: tiny_ltx(**TIMESTEPS, **GROUPS), SHAPES, (64, 96), normalised, latent, frames=9, decode=at_zero
    ),
}
