"""The narrow waist: all that the rest of the house asks of a VAE."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from remote_vae.core.facts import Facts


class VAE(Protocol):
    """A loaded model on a device."""

    facts: Facts

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """*Shapes*: [B,C,h,w] -> [B,3,H,W], or [B,C,f,h,w] -> [B,3,F,H,W], in the model's own range."""
        ...

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """*Shapes*: [B,3,H,W] -> [B,2C,h,w], mean and log-variance, or [B,C,h,w] where facts.deterministic."""
        ...

    def upcast(self) -> AbstractContextManager[None]:
        """The same weights in float32 for as long as the context lasts."""
        ...


def tensors_of(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()
