"""CogVideoX, Mochi, Allegro, EasyAnimate and Cosmos 1.0."""

from typing import Any

import diffusers
import torch

from .case import Case, per_channel

SIGMA_DATA = 0.5  # of the schedulers of Cosmos 1.0


def cogvideox(**config: Any) -> Any:
    return diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2, **{"scaling_factor": 0.6, **config}
    )


def frames_second(z: torch.Tensor) -> torch.Tensor:
    """[B,f,C,h,w] or [B,C,f,h,w], with or without a batch, as CogVideoX's decoder takes it."""
    z = z if z.ndim == 5 else z[None]
    return z if z.shape[1] == 16 else z.permute(0, 2, 1, 3, 4)


def mochi() -> Any:
    return diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        scaling_factor=0.7,
    )


def of_mochi(module: Any, z: torch.Tensor) -> torch.Tensor:
    """As MochiPipeline."""
    z = z if z.ndim == 5 else z[None]
    mean, std = (
        torch.tensor(values).view(1, 12, 1, 1, 1) for values in (module.config.latents_mean, module.config.latents_std)
    )
    return z * std / module.config.scaling_factor + mean


def allegro() -> Any:
    """The smallest tiles that its overlaps allow."""
    module = diffusers.AutoencoderKLAllegro(
        block_out_channels=(2, 2, 2, 2), layers_per_block=1, norm_num_groups=1, sample_size=128, scaling_factor=0.3
    )
    module.use_tiling = module.use_slicing = True
    return module


def easyanimate() -> Any:
    return diffusers.AutoencoderKLMagvit(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2, scaling_factor=0.6
    )


def cosmos(**config: Any) -> Any:
    """Statistics of three frames."""
    torch.manual_seed(3)
    return diffusers.AutoencoderKLCosmos(
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        **{
            "latents_mean": torch.randn(48).tolist(),
            "latents_std": torch.rand(48).add(0.5).tolist(),
            **config,
        },
    )


def by_frame(module: Any, z: torch.Tensor, *, inverse: bool = False) -> torch.Tensor:
    """As CosmosTextToWorldPipeline, and CosmosVideoToWorldPipeline's inverse."""
    z = z if z.ndim == 5 else z[None]
    if module.config.latents_mean is None:
        return z * SIGMA_DATA if inverse else z / SIGMA_DATA
    mean, std = (
        torch.tensor(values).view(1, module.config.latent_channels, -1, 1, 1)[:, :, : z.size(2)]
        for values in (module.config.latents_mean, module.config.latents_std)
    )
    return (z - mean) * SIGMA_DATA / std if inverse else z * std / SIGMA_DATA + mean


def batched(module: Any, z: torch.Tensor) -> torch.Tensor:
    return (z if z.ndim == 5 else z[None]) / module.config.scaling_factor


COG_SHAPES = ((1, 3, 16, 2, 3), (2, 2, 16, 3, 2), (1, 16, 4, 2, 3), (1, 16, 2, 3), (16, 3, 2, 3))
CASES = {
    "cogvideox": Case(
        cogvideox,
        COG_SHAPES,
        (16, 24),
        lambda module, z: 1 / module.config.scaling_factor * frames_second(z),
        lambda module, z: module.config.scaling_factor * z.permute(0, 2, 1, 3, 4),
        frames=9,
    ),
    "cogvideox1.5-i2v": Case(
        lambda: cogvideox(invert_scale_latents=True),
        COG_SHAPES[:2],
        (16, 24),
        lambda module, z: 1 / module.config.scaling_factor * frames_second(z),
        lambda module, z: 1 / module.config.scaling_factor * z.permute(0, 2, 1, 3, 4),
        frames=8,
    ),
    "mochi": Case(
        mochi,
        ((1, 12, 2, 2, 3), (2, 12, 1, 3, 2), (12, 2, 2, 3)),
        (16, 24),
        of_mochi,
        lambda module, z: (
            (z - per_channel(module.config.latents_mean, z))
            * module.config.scaling_factor
            / per_channel(module.config.latents_std, z)
        ),
        frames=7,
    ),
    "allegro": Case(
        allegro,
        ((1, 4, 6, 16, 16), (2, 4, 6, 16, 16), (4, 10, 16, 22)),
        (128, 128),
        batched,
        lambda module, z: z * module.config.scaling_factor,
        frames=24,
        decode=lambda module, z: module.decode(z).sample.permute(0, 2, 1, 3, 4),
    ),
    "easyanimate": Case(
        easyanimate,
        ((1, 16, 3, 2, 3), (2, 16, 1, 3, 2), (16, 2, 2, 3)),
        (16, 24),
        batched,
        lambda module, z: z * module.config.scaling_factor,
        frames=5,
    ),
    "cosmos": Case(
        cosmos,
        ((1, 16, 3, 2, 3), (2, 16, 2, 3, 2), (16, 1, 2, 3)),
        (16, 24),
        by_frame,
        lambda module, z: by_frame(module, z, inverse=True),
        frames=14,
    ),
}
