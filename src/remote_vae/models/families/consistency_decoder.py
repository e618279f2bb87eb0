"""The consistency decoder for Stable Diffusion 1: a small diffusion model that makes pixels of noise and a latent."""

from typing import TYPE_CHECKING, Any, Final

from remote_vae.models.families.autoencoder_kl import SD1
from remote_vae.models.family import Family, Model

if TYPE_CHECKING:
    import torch


def decode(module: Any, latent: "torch.Tensor", *, seed: int | None = None) -> "torch.Tensor":
    """Pixels of a latent; its noise is the same for the same seed."""
    from remote_vae.core.noise import seeded

    pixels: torch.Tensor = module.decode(latent, generator=seeded(seed), return_dict=False)[0]
    return pixels


_MODELS: Final = (Model("consistency-decoder", SD1, "openai/consistency-decoder", "float16", subfolder=None),)

FAMILIES: Final = (Family("ConsistencyDecoderVAE", _MODELS, decode=decode, takes=lambda module: ("seed",)),)
