"""A VAE that does no work, so that what is left to measure is the service."""

import torch

from remote_vae.core.own_code import OwnCode
from remote_vae.core.recipe import Constants, Recipe
from remote_vae.core.vae_info import VAEInfo
from remote_vae.models.spec import ModelSpec
from remote_vae.values import Frames

SMALL_LATENT, SMALL_PIXELS = (1, 4, 64, 64), (1, 3, 256, 256)  # float32: 64 KiB in, 768 KiB out
WIDE_LATENT, WIDE_PIXELS = (1, 800, 128, 128), (1, 3, 128, 128)  # float32: 50 MiB in, 192 KiB out


class IdleVAE:
    """Gives the same pixels for every latent."""

    dtype = torch.float32
    device = torch.device("cpu")
    encoders = ()

    def __init__(self, channels: int, ratio: int, pixels: tuple[int, ...]) -> None:
        config = {"_class_name": "AutoencoderKL", "latent_channels": channels, "block_out_channels": [1, 1, 1]}
        self.info = VAEInfo(channels, ratio, Frames(), Constants(), "float32", deterministic=True, config=config)
        self._pixels = torch.zeros(pixels)
        self.decoders = (OwnCode(torch.nn.Identity(), lambda _, latent: self._decode(latent)),)

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        height, width = (side * self.info.spatial_compression_ratio for side in latent.shape[-2:])
        return self._pixels[:, :, :height, :width].expand(len(latent), -1, -1, -1)


def load(found: dict[str, object]) -> tuple[IdleVAE, Recipe]:
    """What a replica calls."""
    spec = ModelSpec.from_json(found)
    if spec.name == "small":
        return IdleVAE(SMALL_LATENT[1], 4, SMALL_PIXELS), spec.resolve_recipe()
    return IdleVAE(WIDE_LATENT[1], 1, WIDE_PIXELS), spec.resolve_recipe()
