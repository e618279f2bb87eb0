"""Counts the bytes of tensors that are alive: what an algorithm needs, without what an allocator adds."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache, partial
from threading import RLock
from typing import Any, Self, TypeVar
from weakref import ref

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from remote_vae.core.strip_threads import WITHIN

T = TypeVar("T")


class LiveBytes:
    """Counts the tensors that this thread and its workers make inside the block.

    `peak` is the most bytes that these tensors held at one time, `current` what they hold now.
    """

    def __init__(self) -> None:
        self.current = 0
        self.peak = 0
        self._known: dict[int, tuple[int, ref[object]]] = {}
        self._lock = RLock()  # a tensor may be freed, and forgotten, while another one is counted
        self._entered = ExitStack()

    def __enter__(self) -> Self:
        token = WITHIN.set(lambda: _Mode(self))
        self._entered.callback(WITHIN.reset, token)
        self._entered.enter_context(_Mode(self))
        return self

    def __exit__(self, *exc: object) -> None:
        self._entered.close()

    def count(self, tensor: torch.Tensor) -> None:
        owner, key = _owner(tensor), _key(tensor)
        with self._lock:
            if key not in self._known:
                size = owner.nbytes if isinstance(owner, torch.Tensor) else owner.nbytes()
                self._known[key] = size, ref(owner, partial(self._forget, key))
                self.current += size
                self.peak = max(self.peak, self.current)

    def rise(self, work: Callable[[], T]) -> tuple[T, int]:
        """What a piece of work returns, and by how many bytes more than before it were alive at one time meanwhile."""
        before, self.peak, started = self.peak, self.current, self.current
        try:
            found = work()
            return found, self.peak - started
        finally:
            self.peak = max(before, self.peak)

    def passing(self, size: int) -> None:
        """Counts bytes that would be alive for a moment beside what is alive now."""
        with self._lock:
            self.peak = max(self.peak, self.current + size)

    def _forget(self, key: int, owner: object) -> None:
        with self._lock:
            self.current -= self._known.pop(key)[0]


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Sees all operations of one thread."""

    def __init__(self, live: LiveBytes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live = live

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Otherwise torch would import its compiler, to tell it to leave this class alone."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not _makes(func):
            return func(*args, **(kwargs or {}))
        read = tensors_in((args, tuple((kwargs or {}).values()))) if _reads(func) else ()
        given = {_key(tensor) for tensor in read}
        found = func(*args, **(kwargs or {}))
        for tensor in tensors_in(found):
            if _key(tensor) not in given:
                self._live.count(tensor)
        return found


@cache
def _makes(func: Any) -> bool:
    """Whether an operation may return a new tensor. Most return an argument or a view of it, so this saves much time.

    A composite one may do either, whatever it declares.
    """
    composite = func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return composite or not all(found.alias_info for found in func._schema.returns)


@cache
def _reads(func: Any) -> bool:
    """Whether an operation takes tensors, one of which it may return. Most operations that count just make one."""
    return any("Tensor" in str(argument.type) for argument in func._schema.arguments)


def tensors_in(found: Any) -> Iterator[torch.Tensor]:
    """The tensors among the arguments or the results of an operation."""
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, tuple | list):
        for part in found:
            yield from tensors_in(part)


def _owner(tensor: torch.Tensor) -> torch.Tensor | torch.UntypedStorage:
    """What lives as long as the bytes: the storage, which a tensor that a library packed does not have."""
    return tensor if tensor.is_mkldnn else tensor.untyped_storage()


def _key(tensor: torch.Tensor) -> int:
    return id(tensor) if tensor.is_mkldnn else int(tensor.untyped_storage()._cdata)
