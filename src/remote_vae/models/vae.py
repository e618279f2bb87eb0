"""A diffusers module behind the core's narrow waist."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from remote_vae.core.plan import EXACT, PlanName
from remote_vae.core.recipe import Constants
from remote_vae.core.stages import Program
from remote_vae.core.vae_info import VAEInfo
from remote_vae.models.stages import describe_decoder, describe_encoder

# Whose tiled methods work both ways.
TILED: Final = ("AutoencoderKL", "AutoencoderKLFlux2", "AutoencoderKLHunyuanVideo")


class DiffusersVAE:
    """Meets `core.vae.VAE`. One caller at a time: some VAEs keep state between calls."""

    def __init__(self, module: torch.nn.Module, *, source: str, revision: str) -> None:
        self.module = module
        self.decoder, self.encoder = _describe(module)
        known = self.decoder is not None
        exact = EXACT if known else (PlanName.WHOLE,)
        self.info = read_info(
            module,
            plans=(*exact, PlanName.TILES) if type(module).__name__ in TILED else exact,
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


def read_info(module: torch.nn.Module, *, plans: tuple[str, ...], executor: str, source: str, revision: str) -> VAEInfo:
    """The facts of a loaded module, from its own config."""
    config = module.config
    deterministic = type(module).__name__ == "AutoencoderTiny"
    mean, std = _statistics(module)
    return VAEInfo(
        latent_channels=int(config.latent_channels),  # type: ignore[union-attr, arg-type]
        spatial_compression_ratio=_spatial_ratio(config),
        temporal_compression_ratio=int(getattr(config, "temporal_compression_ratio", 1)),
        constants=Constants(
            scaling_factor=_number(getattr(config, "scaling_factor", None)),
            shift_factor=_number(getattr(config, "shift_factor", None)),
            latents_mean=mean,
            latents_std=std,
        ),
        dtype=str(next(module.parameters()).dtype).removeprefix("torch."),
        deterministic=deterministic,
        plans=plans,
        executor=executor,
        weight_bytes=sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers())),
        source=source,
        revision=revision,
        config=_plain(module),
    )


def _plain(module: torch.nn.Module) -> dict[str, object]:
    """The config as JSON has it, with the class and without what only says where it came from."""
    found = dict(module.config)  # type: ignore[arg-type]
    told = {"_class_name": type(module).__name__, **{name: found[name] for name in found if not name.startswith("_")}}
    plain: dict[str, object] = json.loads(json.dumps(told))
    return plain


def _spatial_ratio(config: object) -> int:
    stated = getattr(config, "spatial_compression_ratio", None)
    if stated is not None:
        return int(stated)
    blocks = getattr(config, "decoder_block_out_channels", None) or config.block_out_channels  # type: ignore[attr-defined]
    return int(2 ** (len(blocks) - 1))


def _statistics(module: torch.nn.Module) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and deviation by channel: of the config, or of the batch norm that FLUX.2's weights keep them in."""
    config, norm = module.config, getattr(module, "bn", None)
    if isinstance(norm, torch.nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
        deviation = (norm.running_var.double() + norm.eps).sqrt()
        return tuple(norm.running_mean.tolist()), tuple(deviation.tolist())
    return _numbers(getattr(config, "latents_mean", None)), _numbers(getattr(config, "latents_std", None))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _numbers(values: object) -> tuple[float, ...] | None:
    return tuple(float(value) for value in values) if isinstance(values, list | tuple) else None
