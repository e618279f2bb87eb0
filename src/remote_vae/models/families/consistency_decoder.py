"""The consistency decoder for Stable Diffusion 1: a small diffusion model that makes pixels of noise and a latent."""

from typing import TYPE_CHECKING, Any, Final

from remote_vae.models.families.autoencoder_kl import SD1
from remote_vae.models.family import Family, Model
from remote_vae.values import RGB

if TYPE_CHECKING:
    import torch


def decode(module: Any, latent: "torch.Tensor", *, seed: int | None = None) -> "torch.Tensor":
    """Pixels of a latent; its noise is the same for the same seed."""
    from remote_vae.core.noise import seeded

    if latent.is_meta:
        return _without_values(module, latent)
    pixels: torch.Tensor = module.decode(latent, generator=seeded(seed), return_dict=False)[0]
    return pixels


def _without_values(module: Any, latent: "torch.Tensor") -> "torch.Tensor":
    """What one step holds, for a prediction: the class reads the numbers of the steps from tensors."""
    import torch

    sides = [side << len(module.config.block_out_channels) - 1 for side in latent.shape[-2:]]
    guide, noise = (latent.new_empty(len(latent), channels, *sides) for channels in (latent.shape[1], RGB))
    step = torch.zeros((), dtype=torch.long, device="meta")
    found: torch.Tensor = module.decoder_unet(torch.cat([noise, guide], 1), step).sample[:, :RGB] + noise
    return found


_MODELS: Final = (Model("consistency-decoder", SD1, "openai/consistency-decoder", "float16", subfolder=None),)

FAMILIES: Final = (Family("ConsistencyDecoderVAE", _MODELS, decode=decode, takes=lambda module: ("seed",)),)
