"""Floats in a VAE's range, [-1, 1], <-> [0, 1] or [-1, 1] <-> uint8."""

import torch
from einops import rearrange


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """[-1, 1] to [0, 1], clamped, in the dtype it came in. *Source*: diffusers' VaeImageProcessor.denormalize."""
    return (pixels * 0.5 + 0.5).clamp(0, 1)


def to_uint8(unit: torch.Tensor) -> torch.Tensor:
    """[0, 1] to 0..255, rounded to the nearest level. *Source*: diffusers' VaeImageProcessor.numpy_to_pil."""
    return (unit.float() * 255).round().to(torch.uint8)


def channels_last(pixels: torch.Tensor) -> torch.Tensor:
    """*Shapes*: [B,C,H,W] -> [B,H,W,C]."""
    return rearrange(pixels, "b c h w -> b h w c").contiguous()


def pictures_of(batch: torch.Tensor) -> torch.Tensor:
    """*Shapes*: [B,C,F,H,W] -> [(B F),C,H,W]; [B,C,H,W] stays."""
    return rearrange(batch, "b c f h w -> (b f) c h w") if batch.ndim == 5 else batch


def signed(unit: torch.Tensor) -> torch.Tensor:
    """[0, 1] to [-1, 1]. *Source*: diffusers' VaeImageProcessor.normalize."""
    return 2.0 * unit - 1.0


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite.

    A finite sum shows that, in a fraction of the time and without memory. If the sum overflows, each value is checked.
    """
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())
