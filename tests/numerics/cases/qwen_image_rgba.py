"""The models of Qwen-Image with pictures of four channels."""

from typing import Any

import diffusers
import torch

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


CASES = {
    "qwen-image-2.1": Case(
        lambda: diffusers.AutoencoderKLQwenImage21(**TINY_21),
        ((1, 8, 64), (2, 8, 64), (1, 64, 2, 4), (2, 64, 1, 2, 4), (64, 2, 4)),
        (32, 64),
        lambda module, z: by_channel(module, tokens(z)),
        lambda module, z: by_channel(module, z, inverse=True)[:, :, 0],
        one_frame=True,
    ),
}
