"""The narrow waist: all that the rest of the house asks of a VAE."""

from contextlib import AbstractContextManager
from typing import Protocol

import torch

from remote_vae.core.stages import Program
from remote_vae.core.vae_info import VAEInfo


class VAE(Protocol):
    """A loaded model on a device."""

    info: VAEInfo

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def decoder(self) -> Program | None:
        """The decoder as stages; None when its architecture is not one that they can say."""
        ...

    @property
    def encoder(self) -> Program | None: ...

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """By the model's own code.

        *Shapes*: [B,C,h,w] -> [B,3,H,W], or [B,C,f,h,w] -> [B,3,F,H,W], in the model's own range.
        """
        ...

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """By the model's own code.

        *Shapes*: [B,3,H,W] -> [B,2C,h,w], mean and log-variance, or [B,C,h,w] where info.deterministic.
        """
        ...

    def tiling(self) -> AbstractContextManager[None]:
        """The model's own code works tile by tile, which approximates, for as long as the context lasts."""
        ...

    def upcast(self) -> AbstractContextManager[None]:
        """The same weights in float32 for as long as the context lasts."""
        ...
