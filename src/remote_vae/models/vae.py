"""A diffusers module behind the narrow waist of the core."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module

import torch

from remote_vae.core.blocks import block_executors
from remote_vae.core.executor import Executor
from remote_vae.core.filters import arithmetic
from remote_vae.core.kept import Kept
from remote_vae.core.late_biases import pays, with_late_biases
from remote_vae.core.local import Local
from remote_vae.core.own_code import Call, OwnCode, Tiles, on_meta
from remote_vae.core.pieces import Apart, Pieces, Piecewise
from remote_vae.core.stages import Program
from remote_vae.core.strip_threads import cores
from remote_vae.core.strips import strip_executors
from remote_vae.models.family import Family

Pair = tuple[Program | Local | None, Program | Local | None]  # the decoder and the encoder


class DiffusersVAE:
    """Meets `core.vae.VAE`. One caller at a time: some VAEs keep state between calls."""

    def __init__(self, module: torch.nn.Module, *, source: str, revision: str, family: Family) -> None:
        self._family = family
        self.module = module
        self.decoder, self.encoder = self._described(module)
        self._meta: dict[torch.dtype, Pair] = {}
        self._peaks = Kept[int](), Kept[int]()
        self._decoding = self._own_code(family.decode, 0, family.decode_pieces)
        self._encoding = () if family.encode is None else self._own_code(family.encode, 1, family.encode_pieces)
        self.info = self._family.read_info(
            module,
            plans=tuple(dict.fromkeys(executor.name for executor in (*self.decoders, *self.encoders))),
            executor="diffusers" if self.decoder is None else "strips",
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
        """By the model's own code."""
        return self._family.decode(self.module, _ordered(latent))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """By the model's own code: the parameters of the posterior, or the latent of a deterministic encoder."""
        assert self._family.encode is not None
        return self._family.encode(self.module, _ordered(pixels))

    @property
    def decoders(self) -> tuple[Executor, ...]:
        return self._ways(0, self._decoding)

    @property
    def encoders(self) -> tuple[Executor, ...]:
        return self._ways(1, self._encoding)

    def _ways(self, direction: int, own: tuple[Executor, ...]) -> tuple[Executor, ...]:
        """To decode, or to encode; the faster ones first."""
        match (self.decoder, self.encoder)[direction]:
            case Program() as program:
                return (*strip_executors(program, self.device.type, cores(self.device)), *own)
            case Local() as local:
                blocks = block_executors(local, partial(self._on_meta, direction), self.device, self._peaks[direction])
                return (*own, *blocks) if self._own_is_faster(local) else (*blocks, *own)
        return own

    def _own_is_faster(self, local: Local) -> bool:
        """Whether the module's own code takes less time, by `benchmarks/exact.py`.

        Rows of all frames take less time than that only on CPUs in float32.
        """
        if local.pictures or local.slow:
            return True
        in_float32 = arithmetic(self.dtype, self.device) is torch.float32
        return local.only_rows and not (self.device.type == "cpu" and in_float32)

    def _on_meta(self, direction: int) -> Local:
        """The stages with tensors that have no values."""
        if self.dtype not in self._meta:
            self._meta[self.dtype] = self._described(on_meta(self.module, self.dtype))
        found = self._meta[self.dtype][direction]
        assert isinstance(found, Local)
        return found

    def _own_code(self, call: Call, direction: int, piecewise: Piecewise | None) -> tuple[Executor, ...]:
        described = (self.decoder, self.encoder)[direction]
        program = described if isinstance(described, Program) else None

        def forgetting(module: torch.nn.Module, batch: torch.Tensor, **arguments: object) -> torch.Tensor:
            try:
                return call(module, _ordered(batch), **arguments)
            finally:
                self._family.forget(module)

        own = OwnCode(self.module, forgetting, program, waits=piecewise is not None)
        found: list[Executor] = [] if piecewise is None else [Pieces(self.module, piecewise)]
        found.append(own)
        if not self._family.takes(self.module):  # noise from a seed is drawn for a batch at once
            found.append(Apart(own))
        return (*found, Tiles(self.module, forgetting)) if self._family.tiles else tuple(found)

    def _described(self, module: torch.nn.Module) -> Pair:
        """The decoder and the encoder as stages, or one of them, or neither."""
        if not self._family.stages:
            return None, None
        found: Pair | None
        found = import_module(f"remote_vae.models.stages.{self._family.stages}").describe(module)
        decoder, encoder = found or (None, None)
        return self._laid(decoder), self._laid(encoder)

    def _laid(self, stages: Program | Local | None) -> Program | Local | None:
        return with_late_biases(stages) if isinstance(stages, Program) and pays(self.device) else stages

    @contextmanager
    def upcast(self) -> Iterator[None]:
        """The weights in their own precision are kept, so that going back needs no memory and changes no bit."""
        described = self.decoder, self.encoder
        weights = [(weight, weight.data) for weight in self.module.parameters()]
        buffers = [(part._buffers, dict(part._buffers)) for part in self.module.modules()]
        try:
            torch.nn.Module.to(self.module, torch.float32)
            if self.decoder is not None:
                self.decoder, self.encoder = self._described(self.module)
            yield
        finally:
            for weight, data in weights:
                weight.data = data
            for holder, kept in buffers:
                holder.update(kept)
            self.decoder, self.encoder = described


def _ordered(batch: torch.Tensor) -> torch.Tensor:
    """Channels last for half precision, which is faster; float32 keeps the very bits of a local pipeline."""
    if batch.ndim != 4 or batch.dtype is torch.float32:
        return batch
    return batch.contiguous(memory_format=torch.channels_last)
