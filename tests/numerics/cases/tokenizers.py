"""KVAE and VidTok, which no pipeline uses: the class's own way from pixels to latents and back."""

from typing import Any

import diffusers
import torch
from torch.nn import functional

from .case import Case


def tiny_vidtok(**config: Any) -> Any:
    return diffusers.AutoencoderVidTok(**{"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, **config})


def batched(module: Any, z: torch.Tensor) -> torch.Tensor:
    return z[None] if z.ndim in (3, 4) and z.shape[0] == module.config.z_channels else z


def vidtok_mean(module: Any, pixels: torch.Tensor) -> torch.Tensor:
    """As AutoencoderVidTok.forward has it, with three more frames before the first."""
    mean: torch.Tensor = module.encode(functional.pad(pixels, (0, 0, 0, 0, 3, 0), mode="replicate")).latent_dist.mode()
    return mean


CASES = {
    "kvae-2d": Case(
        lambda: diffusers.AutoencoderKLKVAE(channels=32, ch_mult=(1, 1, 1, 1), num_enc_blocks=1, num_dec_blocks=1),
        ((1, 16, 4, 6), (2, 16, 4, 6), (16, 4, 6)),
        (32, 48),
        batched,
        lambda module, z: z,
    ),
    "kvae-3d": Case(
        lambda: diffusers.AutoencoderKLKVAEVideo(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1),
        ((1, 16, 3, 4, 6), (2, 16, 1, 4, 6), (16, 2, 4, 6), (1, 16, 6, 4, 6), (1, 16, 7, 4, 6)),
        (32, 48),
        batched,
        lambda module, z: z,
        frames=5,
    ),
    "vidtok": Case(
        tiny_vidtok,
        ((1, 4, 3, 4, 6), (2, 4, 1, 4, 6), (4, 2, 4, 6)),
        (32, 48),
        batched,
        lambda module, z: z,
        frames=5,
        decode=lambda module, z: module.decode(z),
        encode=vidtok_mean,
    ),
}
