"""The narrow waist: all that the other rooms ask of a VAE."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from remote_vae.core.executor import Executor
from remote_vae.core.vae_info import VAEInfo


class VAE(Protocol):
    """A loaded model on a device. Executors come in the order of their speed on that device.

    *Shapes*: decoders take [B,C,h,w] or [B,C,f,h,w] and give pixels in the model's own range. Encoders take pixels and
    give mean and log-variance, [B,2C,h,w] or [B,2C,f,h,w], or the latent itself if `info.deterministic`.
    """

    info: VAEInfo

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def decoders(self) -> Sequence[Executor]: ...

    @property
    def encoders(self) -> Sequence[Executor]: ...

    def upcast(self) -> AbstractContextManager[None]:
        """The same weights in float32 for as long as the context lasts."""
        ...
