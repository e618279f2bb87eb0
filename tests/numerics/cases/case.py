"""What a family's test needs: a tiny module, and its pipeline's own formula both ways.

The formulas are written with view and permute, as the pipelines have them, and not as recipes have them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Formula = Callable[[Any, torch.Tensor], torch.Tensor]
BLOCKS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "layers_per_block": 1,
}


def decoded(module: Any, z: torch.Tensor) -> torch.Tensor:
    """What the pipelines call, for most classes."""
    pixels: torch.Tensor = module.decode(z).sample
    return pixels


def mode(module: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The mean of the posterior, as the pipelines take it of most classes."""
    mean: torch.Tensor = module.encode(pixels).latent_dist.mode()
    return mean


@dataclass(frozen=True)
class Case:
    """`inputs` makes the decoder's input of a latent, `latent` a latent of the encoder's mean.

    `latents` are shapes of one picture of `size`, height and width in pixels, in the layouts of the family's pipelines.
    `decode` gives pixels in [-1, 1] of the decoder's input, `encode` the mean of pixels. Without `latent` there is no
    encoder.
    """

    module: Callable[[], Any]
    latents: tuple[tuple[int, ...], ...]
    size: tuple[int, int]
    inputs: Formula
    latent: Formula | None
    frames: int | None = None
    one_frame: bool = False  # pictures are videos of one frame to the module
    decode: Formula = decoded
    encode: Formula = mode


def per_channel(values: Any, z: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(values).view(1, -1, *[1] * (z.ndim - 2))


def by_channel(module: Any, z: torch.Tensor, *, inverse: bool = False) -> torch.Tensor:
    """As WanPipeline has it: [B,C,f,h,w] or [C,f,h,w] -> [B,C,f,h,w]."""
    z = z if z.ndim == 5 else z[None]
    mean, std = (per_channel(values, z) for values in (module.config.latents_mean, module.config.latents_std))
    return (z - mean) / std if inverse else z * std + mean
