"""Counts the bytes of tensors that are alive: what an algorithm needs, apart from any allocator's habits."""

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Of the tensors made within the block: `peak`, the most bytes they held at one time, and `current`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = {_key(tensor) for tensor in _tensors((args, tuple((kwargs or {}).values())))}
        found = func(*args, **(kwargs or {}))
        for tensor in _tensors(found):
            if _key(tensor) not in given:
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.current)
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.current += storage.nbytes()
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.current -= self._known.pop(key, 0)


def _tensors(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, tuple | list):
        for part in found:
            yield from _tensors(part)


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
