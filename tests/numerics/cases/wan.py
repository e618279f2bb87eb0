"""Wan, what works on its weights, and Qwen-Image."""

from typing import Any

import diffusers
import torch

from ..conftest import WAN_22, tiny_wan
from .case import Case, by_channel


def unpacked(z: torch.Tensor) -> torch.Tensor:
    """As QwenImagePipeline._unpack_latents, for 2 by 3 patches; other layouts get the axis of one frame."""
    if z.ndim == 3:
        return z.view(1, 2, 3, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 16, 1, 4, 6)
    return z if z.ndim == 5 else z.unsqueeze(2)


def cells_of_fibo(z: torch.Tensor) -> torch.Tensor:
    """As BriaFiboPipeline: single cells, or patches of 2 by 2 cells; 2 by 4 cells here."""
    if z.shape[-1] == 48:
        return z.view(len(z), 2, 4, 48).permute(0, 3, 1, 2).unsqueeze(2)
    if z.shape[-1] == 192:
        return z.view(len(z), 1, 2, 48, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(len(z), 48, 2, 4).unsqueeze(2)
    return z if z.ndim == 5 else z.unsqueeze(-3)


def denormalised(module: Any, z: torch.Tensor) -> torch.Tensor:
    """As the pipelines that work on one frame; a latent without a batch gets one."""
    return by_channel(module, z if z.ndim == 5 else z.unsqueeze(-3).reshape(-1, module.config.z_dim, 1, *z.shape[-2:]))


def as_cosmos(module: Any, z: torch.Tensor, *, inverse: bool = False) -> torch.Tensor:
    """As Cosmos2VideoToWorldPipeline, with the sigma_data that its constructor sets."""
    mean, deviation = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (module.config.latents_mean, module.config.latents_std)
    )
    sigma_data = 1.0
    return (z - mean) / deviation * sigma_data if inverse else z * deviation / sigma_data + mean


CASES = {
    "wan2.1": Case(
        tiny_wan,
        ((1, 16, 3, 2, 3), (16, 2, 2, 3), (1, 16, 1, 2, 3)),
        (16, 24),
        by_channel,
        lambda module, z: by_channel(module, z, inverse=True),
        frames=5,
    ),
    "wan2.2-5b": Case(
        lambda: tiny_wan(**WAN_22),
        ((1, 48, 3, 2, 3), (1, 48, 1, 2, 3)),
        (32, 48),
        by_channel,
        lambda module, z: by_channel(module, z, inverse=True),
        frames=5,
    ),
    "cosmos-predict2": Case(
        tiny_wan,
        ((1, 16, 3, 2, 3), (2, 16, 1, 3, 5)),
        (16, 24),
        as_cosmos,
        lambda module, z: as_cosmos(module, z, inverse=True),
        frames=9,
    ),
    "helios": Case(
        tiny_wan,
        ((2, 16, 3, 2, 3), (16, 3, 3, 5)),
        (16, 24),
        by_channel,
        lambda module, z: by_channel(module, z, inverse=True),
        frames=5,
    ),
    **{
        name: Case(
            tiny_wan,
            ((1, 16, 2, 4), (2, 16, 3, 5), (1, 16, 1, 3, 5), (16, 3, 5)),
            (16, 32),
            denormalised,
            lambda module, z: by_channel(module, z, inverse=True)[:, :, 0],
            one_frame=True,
        )
        for name in ("joyimage", "joyimage-edit-plus", "cosmos-predict2-text2image")
    },
    "fibo": Case(
        lambda: tiny_wan(**WAN_22),
        ((1, 8, 48), (2, 8, 48), (2, 2, 192), (1, 1, 2, 192), (2, 48, 2, 4), (48, 2, 4), (1, 48, 1, 3, 5)),
        (32, 64),
        lambda module, z: by_channel(module, cells_of_fibo(z[0] if z.shape[:2] == (1, 1) else z)),
        lambda module, z: by_channel(module, z, inverse=True)[:, :, 0],
        one_frame=True,
    ),
    "qwen-image": Case(
        lambda: tiny_wan(diffusers.AutoencoderKLQwenImage),
        ((1, 6, 64), (1, 16, 1, 4, 6), (1, 16, 4, 6)),
        (32, 48),
        lambda module, z: by_channel(module, unpacked(z)),
        lambda module, z: by_channel(module, z, inverse=True)[:, :, 0],
        one_frame=True,
    ),
}
