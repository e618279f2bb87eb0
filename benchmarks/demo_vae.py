"""The demo VAE as other servers run it: diffusers' own module, a square float16 latent in, a JPEG out."""

import io
import math
from typing import Any

import torch
from PIL import Image

CHANNELS = 16


def load() -> Any:
    """The demo VAE as diffusers has it."""
    from remote_vae.models.loader import load as load_model
    from remote_vae.models.spec import ModelSpec

    return load_model(ModelSpec("demo", device="cpu", dtype="float32")).module


def read(body: bytes) -> torch.Tensor:
    """A square latent."""
    side = math.isqrt(len(body) // 2 // CHANNELS)
    return torch.frombuffer(bytearray(body), dtype=torch.float16).reshape(1, CHANNELS, side, side).float()


@torch.inference_mode()
def decode(module: Any, latent: torch.Tensor) -> torch.Tensor:
    """uint8 pixels, channels last."""
    config = module.config
    z = latent / config.scaling_factor + (config.shift_factor or 0)
    pixels = module.decode(z, return_dict=False)[0]
    return (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)


def write(pixels: torch.Tensor) -> bytes:
    """One picture as a JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "JPEG", quality=95)
    return file.getvalue()
