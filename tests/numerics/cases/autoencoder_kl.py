"""The VAEs of AutoencoderKL."""

from collections.abc import Callable
from typing import Any

import diffusers

from .case import BLOCKS, Case, per_channel


def kl(**config: Any) -> Callable[[], Any]:
    return lambda: diffusers.AutoencoderKL(**{**BLOCKS, "latent_channels": 4, **config})


CASES = {
    "glm-image": Case(
        kl(latents_mean=[-0.7, 0.4, 0.2, -0.3], latents_std=[1.7, 0.6, 1.3, 0.8], scaling_factor=0.4, shift_factor=0.3),
        ((1, 4, 4, 8), (2, 4, 4, 4)),
        (32, 64),
        lambda module, z: z * per_channel(module.config.latents_std, z) + per_channel(module.config.latents_mean, z),
        lambda module, z: (z - per_channel(module.config.latents_mean, z)) / per_channel(module.config.latents_std, z),
    ),
    "kandinsky5-image": Case(
        kl(scaling_factor=0.41, shift_factor=-0.17),
        ((2, 1, 4, 6, 4), (2, 4, 4, 6)),
        (32, 48),
        lambda module, z: (z[:, 0].permute(0, 3, 1, 2) if z.ndim == 5 else z) / module.config.scaling_factor,
        lambda module, z: z * module.config.scaling_factor,
    ),
    "bria3.2": Case(
        kl(scaling_factor=0.37, shift_factor=None),
        ((1, 6, 16),),
        (32, 48),
        lambda module, z: z.view(1, 2, 3, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 4, 4, 6) / 0.37,
        lambda module, z: z * 0.37,
    ),
    "sd-x4-upscaler": Case(
        kl(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            scaling_factor=0.31,  # the pipeline sets its own
        ),
        ((1, 4, 4, 6),),
        (16, 24),
        lambda module, z: z / 0.08333,
        lambda module, z: z * 0.08333,
    ),
}
