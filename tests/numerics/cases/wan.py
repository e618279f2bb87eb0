"""Wan and Qwen-Image."""

import diffusers
import torch

from ..conftest import WAN_22, tiny_wan
from .case import Case, by_channel


def unpacked(z: torch.Tensor) -> torch.Tensor:
    """As QwenImagePipeline._unpack_latents, for 2 by 3 patches; other layouts get the axis of one frame."""
    if z.ndim == 3:
        return z.view(1, 2, 3, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 16, 1, 4, 6)
    return z if z.ndim == 5 else z.unsqueeze(2)


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
    "qwen-image": Case(
        lambda: tiny_wan(diffusers.AutoencoderKLQwenImage),
        ((1, 6, 64), (1, 16, 1, 4, 6), (1, 16, 4, 6)),
        (32, 48),
        lambda module, z: by_channel(module, unpacked(z)),
        lambda module, z: by_channel(module, z, inverse=True)[:, :, 0],
        one_frame=True,
    ),
}
