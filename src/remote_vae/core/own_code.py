"""A model runs by its own code: every family can, and its very bits come out.

How much memory that takes is found by running the same code on meta tensors, which have shapes but no values, while
the bytes that would be alive are counted.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Final
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from remote_vae.core.absent import COMPILER, in_place_of
from remote_vae.core.executor import NO_ARGUMENTS, TILES, WHOLE, Arguments, Sink
from remote_vae.core.kept import Kept
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.pixels import pictures_of
from remote_vae.core.stages import Program
from remote_vae.core.strip_threads import cores, one_core
from remote_vae.core.strips import is_light, is_small, predict_whole

BESIDE_ONE_STRIP: Final = 1.25  # the most that own code takes, as a multiple of the same layers in one strip
BESIDE_SCALED: Final = 2.1  # the same if norms are scaled by the input, for which own code makes whole maps
_ON_META: Final[WeakKeyDictionary[nn.Module, dict[torch.dtype, nn.Module]]] = WeakKeyDictionary()

Call = Callable[..., torch.Tensor]
"""Takes the module, its input, and the arguments by name."""


class Rehearsed:
    """An executor that calls the module, and predicts its memory by a rehearsal on a copy with meta tensors."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._peaks = Kept[int | None]()

    def peak_of_one(self, shape: tuple[int, ...], dtype: torch.dtype) -> int | None:
        """The peak of one picture or video of a batch; kept, because every request of the shape asks for it."""
        return self._peaks.find((dtype, shape[1:]), lambda: self._predict((1, *shape[1:]), dtype))

    def _predict(self, shape: tuple[int, ...], dtype: torch.dtype) -> int | None:
        module = on_meta(self._module, dtype)
        try:
            with in_place_of(COMPILER), torch.inference_mode(), LiveBytes() as live:
                self._rehearse(module, torch.empty(shape, dtype=dtype, device="meta"), live)
        except Exception:  # noqa: BLE001  # boundary: a model's own code may ask a tensor for its values
            return None
        return live.peak

    def _rehearse(self, module: nn.Module, one: torch.Tensor, live: LiveBytes) -> None:
        raise NotImplementedError


class OwnCode(Rehearsed):
    """An executor that calls the module. `program` describes the module's layers, if that is known.

    `call` takes the module as an argument, because predictions call a copy of it on the meta device. If the executor
    `waits`, the planner does not choose it: the same bits come from pieces, in less memory.
    """

    name, exact = WHOLE, True

    def __init__(self, module: nn.Module, call: Call, program: Program | None = None, *, waits: bool = False) -> None:
        super().__init__(module)
        self._call, self._program, self._waits = call, program, waits

    @property
    def _device(self) -> torch.device:
        return next(self._module.parameters()).device

    def suits(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        known = self._program
        return not self._waits and (known is None or is_small(known, shape, dtype, self._device))

    def peak_bytes(self, shape: tuple[int, ...], dtype: torch.dtype, output: int) -> int | None:
        """The peak grows with the batch, so it is predicted for one picture or video."""
        if self._program is not None and len(shape) == 4:  # a bound found in a fraction of the time of a small picture
            beside = BESIDE_SCALED if self._program.scaled else BESIDE_ONE_STRIP
            return int(shape[0] * beside * predict_whole(self._program, shape, dtype)) + output
        each = self.peak_of_one(shape, dtype)
        return None if each is None else shape[0] * each + output

    def _rehearse(self, module: nn.Module, one: torch.Tensor, live: LiveBytes) -> None:
        self._called(module, one, NO_ARGUMENTS)

    def _called(self, module: nn.Module, batch: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        return self._call(module, batch, **arguments)

    def run(
        self, z: torch.Tensor, sink: Sink, checkpoint: Callable[[], None], arguments: Arguments = NO_ARGUMENTS
    ) -> None:
        count = cores(z.device)
        light = count > 1 and self._program is not None and is_light(self._program, z.shape, count)
        with one_core() if light else between_layers(checkpoint):  # a light run is over before anybody could cancel it
            found = self._called(self._module, z, arguments)
        sink(0, 0, pictures_of(found))


class Tiles(OwnCode):
    """The module's own tiled code, which approximates: it runs only if a request asks for it."""

    name, exact = TILES, False

    def _called(self, module: nn.Module, batch: torch.Tensor, arguments: Arguments) -> torch.Tensor:
        module.enable_tiling()  # type: ignore[operator]
        try:
            return self._call(module, batch, **arguments)
        finally:
            module.disable_tiling()  # type: ignore[operator]


@contextmanager
def between_layers(checkpoint: Callable[[], None]) -> Iterator[None]:
    """Calls `checkpoint` before each layer that this thread runs."""
    thread = get_ident()

    def before(module: nn.Module, given: object) -> None:
        if get_ident() == thread:
            checkpoint()

    with register_module_forward_pre_hook(before):
        yield


def on_meta(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the module for predictions, which share it: the first encode does not wait for one after a decode."""
    copies = _ON_META.setdefault(module, {})
    if dtype not in copies:
        copies[dtype] = meta_copy(module)
    return copies[dtype]


def meta_copy(module: nn.Module) -> nn.Module:
    """The module's structure with meta tensors in place of its own; the weights are not copied."""
    memo: dict[int, object] = {}
    for part in module.modules():
        for tensor in (*part._parameters.values(), *part._buffers.values(), *vars(part).values()):
            if isinstance(tensor, torch.Tensor):
                empty = torch.empty_like(tensor, device="meta")
                memo[id(tensor)] = (
                    nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
                )
    return copy.deepcopy(module, memo)
