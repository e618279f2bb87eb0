"""The models of Qwen-Image with pictures of four channels."""

from typing import Any

import diffusers
import torch

from ..conftest import tiny_wan
from .case import Case, by_channel

TINY_21: dict[str, Any] = {
    "base_dim": 8,
    "decoder_base_dim": 8,
    "z_dim": 64,
    "dim_mult": [1, 1, 1, 1, 1],
    "num_res_blocks": 1,
    "latents_mean": [0.05 * index - 0.7 for index in range(64)],
    "latents_std": [0.03 * index + 0.6 for index in range(64)],
}


def tokens(z: torch.Tensor) -> torch.Tensor:
    """As QwenImage21Pipeline._unpack_latents, for 32 by 64 pixels; other layouts get the axis of one frame."""
    if z.ndim == 3 and z.shape[-1] == 64:
        return z.transpose(1, 2).reshape(len(z), 64, 1, 2, 4)
    return z if z.ndim == 5 else (z if z.ndim == 4 else z[None]).unsqueeze(2)


def layers(z: torch.Tensor) -> torch.Tensor:
    """As QwenImageLayeredPipeline and its modular decoder have it, for 32 by 48 pixels; then layers become pictures."""
    if z.ndim == 3 and z.shape[-1] == 64:
        z = z.view(len(z), -1, 2, 3, 16, 2, 2).permute(0, 1, 4, 2, 5, 3, 6).reshape(len(z), -1, 16, 4, 6)
        z = z.permute(0, 2, 1, 3, 4)
    z = z if z.ndim == 5 else (z if z.ndim == 4 else z[None]).unsqueeze(2)
    if z.shape[2] > 1:
        z = z[:, :, 1:]
    return z.permute(0, 2, 1, 3, 4).reshape(-1, 16, 1, 4, 6)


CASES = {
    "qwen-image-layered": Case(
        lambda: tiny_wan(diffusers.AutoencoderKLQwenImage, input_channels=4),
        (
            *((1, 24, 64), (2, 18, 64), (2, 12, 64), (2, 6, 64)),
            *((1, 16, 4, 4, 6), (2, 16, 3, 4, 6), (2, 16, 1, 4, 6)),
            *((2, 16, 4, 6), (16, 4, 6)),
        ),
        (32, 48),
        lambda module, z: by_channel(module, layers(z)),
        lambda module, z: by_channel(module, z, inverse=True)[:, :, 0],
        one_frame=True,
    ),
    "qwen-image-2.1": Case(
        lambda: diffusers.AutoencoderKLQwenImage21(**TINY_21),
        ((1, 8, 64), (2, 8, 64), (1, 64, 2, 4), (2, 64, 1, 2, 4), (64, 2, 4)),
        (32, 64),
        lambda module, z: by_channel(module, tokens(z)),
        lambda module, z: by_channel(module, z, inverse=True)[:, :, 0],
        one_frame=True,
    ),
}
