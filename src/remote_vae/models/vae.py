"""A diffusers module behind the core's narrow waist."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from remote_vae.core.plan import EXACT, PlanName
from remote_vae.core.stages import Program
from remote_vae.models.families import family_of_class
from remote_vae.models.family import Family
from remote_vae.models.stages import describe_decoder, describe_encoder


class DiffusersVAE:
    """Meets `core.vae.VAE`. One caller at a time: some VAEs keep state between calls."""

    def __init__(self, module: torch.nn.Module, *, source: str, revision: str, family: Family | None = None) -> None:
        family = family or family_of_class(type(module).__name__)
        self.module = module
        self.decoder, self.encoder = _describe(module) if family.strips else (None, None)
        known = self.decoder is not None
        exact = EXACT if known else (PlanName.WHOLE,)
        self.info = family.read_info(
            module,
            plans=(*exact, PlanName.TILES) if family.tiles else exact,
            executor="strips" if known else "diffusers",
            source=source,
            revision=revision,
        )

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        pixels: torch.Tensor = self.module.decode(_ordered(latent), return_dict=False)[0]  # type: ignore[operator]
        return pixels

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        found = self.module.encode(_ordered(pixels), return_dict=False)[0]  # type: ignore[operator]
        moments: torch.Tensor = found if self.info.deterministic else found.parameters
        return moments

    @contextmanager
    def upcast(self) -> Iterator[None]:
        before, kept = self.dtype, (self.decoder, self.encoder)
        self.module.to(torch.float32)
        if self.decoder is not None:
            self.decoder, self.encoder = _describe(self.module)
        try:
            yield
        finally:
            self.module.to(before)
            self.decoder, self.encoder = kept

    @contextmanager
    def tiling(self) -> Iterator[None]:
        self.module.enable_tiling()  # type: ignore[operator]
        try:
            yield
        finally:
            self.module.disable_tiling()  # type: ignore[operator]


def _ordered(batch: torch.Tensor) -> torch.Tensor:
    """Channels last for half precision, which is about speed; float32 keeps the very bits of a local pipeline."""
    if batch.ndim != 4 or batch.dtype is torch.float32:
        return batch
    return batch.contiguous(memory_format=torch.channels_last)


def _describe(module: torch.nn.Module) -> tuple[Program | None, Program | None]:
    """Both or neither, so that what a model's card says holds for both ways."""
    decoder, encoder = describe_decoder(module), describe_encoder(module)
    return (None, None) if decoder is None or encoder is None else (decoder, encoder)
