"""The VAEs of FLUX.2's class."""

from typing import Any

import diffusers
import torch

from .case import BLOCKS, Case


def flux2() -> Any:
    return diffusers.AutoencoderKLFlux2(**BLOCKS, latent_channels=8)


def patches(cells: torch.Tensor) -> torch.Tensor:
    """[B,C,h,w] -> [B,4C,h/2,w/2], as Flux2Pipeline._patchify_latents."""
    b, c, h, w = cells.shape
    return cells.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


def cells(patches: torch.Tensor) -> torch.Tensor:
    """[B,4C,h,w] -> [B,C,2h,2w], as Flux2Pipeline._unpatchify_latents."""
    b, c, h, w = patches.shape
    return patches.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)


def statistics(module: Any, eps: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the batch norm, [1,4C,1,1]."""
    eps = module.config.batch_norm_eps if eps is None else eps
    return module.bn.running_mean.view(1, -1, 1, 1), torch.sqrt(module.bn.running_var + eps).view(1, -1, 1, 1)


def affine(module: Any, z: torch.Tensor, eps: float | None = None) -> torch.Tensor:
    mean, std = statistics(module, eps)
    return z * std + mean


def inverse(module: Any, z: torch.Tensor, eps: float | None = None) -> torch.Tensor:
    mean, std = statistics(module, eps)
    return (z - mean) / std


def ideogram_tile(module: Any, values: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Values of (patch row, patch column, channel) for each cell, as Ideogram 4's modular decoder lays them out."""
    c = z.shape[1]
    return values.flatten().view(2, 2, c).permute(2, 0, 1).repeat(1, z.shape[2] // 2, z.shape[3] // 2)


def ideogram_inputs(module: Any, z: torch.Tensor) -> torch.Tensor:
    mean, std = statistics(module)
    if z.ndim == 4:
        return z * ideogram_tile(module, std, z) + ideogram_tile(module, mean, z)
    z = z * std.view(1, 1, -1) + mean.view(1, 1, -1)
    z = z.view(1, 2, 3, 2, 2, z.shape[-1] // 4).permute(0, 5, 1, 3, 2, 4)  # the pipeline's own steps
    return z.reshape(1, -1, 4, 6)


def ideogram_latent(module: Any, mean_of_encoder: torch.Tensor) -> torch.Tensor:
    mean, std = statistics(module)
    z = (mean_of_encoder - ideogram_tile(module, mean, mean_of_encoder)) / ideogram_tile(module, std, mean_of_encoder)
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


CASES = {
    "ideogram4": Case(flux2, ((1, 8, 4, 6), (1, 6, 32)), (32, 48), ideogram_inputs, ideogram_latent),
    "ernie-image": Case(
        flux2,
        ((1, 32, 2, 3),),
        (32, 48),
        lambda module, z: cells(affine(module, z, 1e-5)),
        lambda module, z: inverse(module, patches(z), 1e-5),
    ),
    "fibo2": Case(
        flux2,
        ((1, 8, 4, 6),),
        (32, 48),
        lambda module, z: cells(affine(module, patches(z))),
        lambda module, z: cells(inverse(module, patches(z))),
    ),
    "flux3": Case(
        flux2,
        ((1, 32, 2, 3), (1, 8, 4, 6)),
        (32, 48),
        lambda module, z: cells(affine(module, z if z.shape[1] == 32 else patches(z))),
        lambda module, z: inverse(module, patches(z)),
    ),
    "flux2-small-decoder": Case(
        lambda: diffusers.AutoencoderKLFlux2(**BLOCKS, latent_channels=8, decoder_block_out_channels=(4, 4, 8, 8)),
        ((1, 32, 2, 3),),
        (32, 48),
        lambda module, z: cells(affine(module, z)),
        lambda module, z: inverse(module, patches(z)),
    ),
}
