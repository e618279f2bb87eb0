"""Videos whose frames are pictures to the VAE: AnimateDiff, Latte, Stable Video Diffusion."""

from typing import Any

import diffusers
import torch

from .autoencoder_kl import kl
from .case import Case


def folded(z: torch.Tensor) -> torch.Tensor:
    """[B,C,f,h,w] -> [B*f,C,h,w], as AnimateDiffPipeline.decode_latents; [f,C,h,w] is what it decodes."""
    if z.ndim == 4:
        return z
    b, c, f, h, w = z.shape
    return z.permute(0, 2, 1, 3, 4).reshape(b * f, c, h, w)


def frames_of(x: torch.Tensor, count: int) -> torch.Tensor:
    """[B*F,C,H,W] -> [B,C,F,H,W], as the pipelines' decode_latents."""
    return x[None, :].reshape((-1, count, *x.shape[1:])).permute(0, 2, 1, 3, 4)


def pixels(module: Any, z: torch.Tensor) -> torch.Tensor:
    """Of latents [B,C,f,h,w], or of [f,C,h,w]."""
    return frames_of(module.decode(folded(z)).sample, z.shape[2] if z.ndim == 5 else len(z))


def mean(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Frame by frame, as AnimateDiffVideoToVideoPipeline.encode_video."""
    return torch.stack([module.encode(frame).latent_dist.mode() for frame in x.unbind(2)], dim=2)


def tiny_svd() -> Any:
    return diffusers.AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 4,
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        scaling_factor=0.31,
    )


def svd_pixels(module: Any, z: torch.Tensor) -> torch.Tensor:
    """As StableVideoDiffusionPipeline.decode_latents, for latents [B,f,C,h,w] or one video's [f,C,h,w]."""
    frames = z.shape[-4]
    flat = z.flatten(0, 1) if z.ndim == 5 else z
    return frames_of(module.decode(flat, num_frames=frames).sample, frames)


CASES = {
    "animatediff": Case(
        kl(scaling_factor=0.31),
        ((1, 4, 3, 4, 6), (2, 4, 2, 4, 6), (1, 4, 1, 4, 6), (3, 4, 4, 6), (4, 4, 4, 6), (1, 4, 4, 4, 6)),
        (32, 48),
        lambda module, z: z / module.config.scaling_factor,
        lambda module, z: z * module.config.scaling_factor,
        frames=3,
        decode=pixels,
        encode=mean,
    ),
    "svd": Case(
        tiny_svd,
        ((1, 3, 4, 4, 6), (2, 2, 4, 4, 6), (1, 1, 4, 4, 6), (1, 4, 4, 4, 6), (3, 4, 4, 6)),
        (32, 48),
        lambda module, z: z / module.config.scaling_factor,
        lambda module, z: (z * module.config.scaling_factor).transpose(1, 2),  # frames first, as they travel
        frames=3,
        decode=svd_pixels,
        encode=mean,
    ),
}
