"""HunyuanImage, its refiner, and HunyuanVideo."""

from typing import Any

import diffusers
import torch

from ..conftest import TINY_VIDEO
from .case import Case


def restored(z: torch.Tensor) -> torch.Tensor:
    """As HunyuanImageRefinerPipeline._restore_image_tokens_order; the decoder's own input stays."""
    if z.shape[1] == 32:
        return z.reshape(len(z), 32, 1, *z.shape[-2:])
    b, c, f, h, w = z.shape
    z = z.permute(0, 2, 1, 3, 4).reshape(b, f * 2, c // 2, h, w).permute(0, 2, 1, 3, 4)
    return z[:, :, 1:]


def reordered(z: torch.Tensor) -> torch.Tensor:
    """As HunyuanImageRefinerPipeline._reorder_image_tokens, without the axis of one frame."""
    z = torch.cat((z[:, :, :1], z), dim=2)
    b, c, f, h, w = z.shape
    return z.permute(0, 2, 1, 3, 4).reshape(b, f // 2, c * 2, h, w).permute(0, 2, 1, 3, 4)[:, :, 0]


def tiny_refiner() -> Any:
    return diffusers.AutoencoderKLHunyuanImageRefiner(
        latent_channels=32, block_out_channels=(32, 32, 32, 64, 64), layers_per_block=1, scaling_factor=0.7
    )


def tiny_hunyuanvideo() -> Any:
    """Frames are decoded and encoded in windows, as the class does without being told."""
    return diffusers.AutoencoderKLHunyuanVideo(**TINY_VIDEO, latent_channels=16, scaling_factor=0.47)


CASES = {
    "hunyuanvideo": Case(
        tiny_hunyuanvideo,
        ((1, 16, 3, 2, 3), (16, 6, 2, 2), (2, 16, 1, 3, 2)),
        (16, 24),
        lambda module, z: (z if z.ndim == 5 else z[None]) / module.config.scaling_factor,
        lambda module, z: z * module.config.scaling_factor,
        frames=9,
    ),
    "hunyuan-image-2.1": Case(
        lambda: diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=16,
            block_out_channels=(32,) * 6,
            layers_per_block=1,
            spatial_compression_ratio=32,
            sample_size=64,
            scaling_factor=0.7,
        ),
        ((1, 16, 2, 4),),
        (64, 128),
        lambda module, z: z / module.config.scaling_factor,
        lambda module, z: z * module.config.scaling_factor,
    ),
    "hunyuan-image-refiner": Case(
        tiny_refiner,
        ((1, 64, 1, 2, 4), (2, 64, 1, 2, 4), (1, 32, 2, 4)),
        (32, 64),
        lambda module, z: restored(z) / module.config.scaling_factor,
        lambda module, z: reordered(z) * module.config.scaling_factor,
        one_frame=True,
    ),
    "hunyuanvideo-1.5": Case(
        lambda: diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=16,
            block_out_channels=(32,) * 5,
            layers_per_block=1,
            scaling_factor=0.7,
        ),
        ((1, 16, 3, 2, 3), (1, 16, 1, 2, 2)),
        (32, 48),
        lambda module, z: z / module.config.scaling_factor,
        lambda module, z: z * module.config.scaling_factor,
        frames=5,
    ),
}
