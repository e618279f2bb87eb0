"""Kandinsky 5 video, Kandinsky 6 and its super-resolution."""

from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kandinsky6_sr import Kandinsky6SRVAE

from ..conftest import TINY_VIDEO
from .case import Case, decoded, mode


def hunyuan() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(**TINY_VIDEO, latent_channels=16, scaling_factor=0.47)


def channels_first(module: Any, z: torch.Tensor) -> torch.Tensor:
    """As Kandinsky5T2VPipeline has it; a latent that has its channels first is what Kandinsky6TI2VAPipeline gives."""
    z = z if z.ndim == 5 else z[None]
    return (z.permute(0, 4, 1, 2, 3) if z.shape[-1] == 16 else z) / module.config.scaling_factor


def sr() -> Any:
    return Kandinsky6SRVAE(
        latent_channels=64,
        encoder_block_out_channels=(8, 16, 16, 16, 16),
        decoder_block_out_channels=(8, 16, 16, 16, 16),
        layers_per_block=1,
        scaling_factor=0.77,
    )


CASES = {
    "kandinsky5-video": Case(
        hunyuan,
        ((1, 3, 4, 6, 16), (2, 2, 4, 6, 16), (1, 16, 3, 4, 6), (1, 1, 4, 6, 16), (3, 4, 6, 16), (16, 2, 4, 6)),
        (32, 48),
        channels_first,
        lambda module, z: z * module.config.scaling_factor,
        frames=5,
    ),
    "kandinsky6": Case(
        hunyuan,
        ((1, 16, 3, 4, 6), (2, 16, 1, 4, 6)),
        (32, 48),
        channels_first,
        lambda module, z: z * module.config.scaling_factor,
        frames=5,
    ),
    "kandinsky6-sr": Case(
        sr,
        ((1, 64, 6, 2, 3), (2, 64, 2, 2, 3), (1, 64, 1, 2, 3), (64, 3, 2, 3)),
        (32, 48),
        lambda module, z: (z if z.ndim == 5 else z[None]) / module.config.scaling_factor,
        lambda module, z: z * module.config.scaling_factor,
        frames=5,
        decode=lambda module, z: ((decoded(module, z) + 1) * (128 / 127.5) - 1).clamp(-1, 1),
        encode=lambda module, pixels: mode(module, (pixels + 1) * (127.5 / 128) - 1),
    ),
}
