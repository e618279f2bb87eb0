"""Strips side by side: one core computes a strip from its first operation to its last.

Torch's operations use OpenMP, which splits each operation among all cores. The cores then wait for each other at the
end of every operation, thousands of times for a picture. Here they wait for each other only at the end of a layer.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from threading import Barrier, Condition
from typing import Final, Generic, TypeVar

import torch

T = TypeVar("T")
Span = tuple[int, int]  # the first row, and the one past the last

# A context in which all work runs, in every thread: a dispatch mode of torch applies only to the thread that enters it.
WITHIN: Final[ContextVar[Callable[[], AbstractContextManager[object]]]] = ContextVar("within", default=nullcontext)


def cores(device: torch.device) -> int:
    """How many strips a device computes at a time: a CPU one for each of torch's threads, other devices one."""
    return torch.get_num_threads() if device.type == "cpu" else 1


@cache
def workers(count: int) -> "Workers":
    """The workers of this process. Their threads wait for work until the process ends."""
    return Workers(count)


class Workers:
    """This thread and others, each with one core. A single worker uses all the cores that torch gives it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = _started(count - 1) if count > 1 else None

    def each(self, spans: Iterable[Span], work: Callable[[Span], T], take: Callable[[Span, T], None]) -> None:
        """Calls `work` for each span, and `take` with each result, in order and in this thread.

        Other threads work meanwhile. The first error in `spans`, `work` or `take` is raised after all of them stopped.
        """
        if self._pool is None:
            for span in spans:
                take(span, work(span))
            return
        line = _Line(iter(spans), work, 2 * self._count)
        within = WITHIN.get()
        helpers = [self._pool.submit(line.help, within) for _ in range(self._count - 1)]
        try:
            with one_core(), _on_first_core(self._count):
                line.lead(take)
        finally:
            line.close()
            wait([helper for helper in helpers if not helper.cancel()])
            line.forget()


class _Line(Generic[T]):
    """Spans that several threads work on. At most `ahead` spans have been begun but not taken."""

    def __init__(self, spans: Iterator[Span], work: Callable[[Span], T], ahead: int) -> None:
        self._spans, self._work, self._ahead = spans, work, ahead
        self._changed = Condition()
        self._begun = self._taken = 0
        self._done: dict[int, tuple[Span, T]] = {}
        self._closed = False
        self._error: BaseException | None = None

    def help(self, within: Callable[[], AbstractContextManager[object]]) -> None:
        """What a helping thread does: it works until no span is left to begin."""
        try:
            with torch.inference_mode(), within():
                while (begun := self._begin()) is not None:
                    self._do(*begun)
        except BaseException as exc:  # noqa: BLE001  # boundary: the leader raises it
            with self._changed:
                self._error = self._error or exc
                self._closed = True
                self._changed.notify_all()

    def lead(self, take: Callable[[Span, T], None]) -> None:
        """What the calling thread does: it takes results that are ready, and works if there are none."""
        while True:
            with self._changed:
                if self._error is not None:
                    raise self._error
                done = self._done.pop(self._taken, None)
            if done is not None:
                take(*done)
                del done  # so that `take` decides how long the result lives
                with self._changed:
                    self._taken += 1
                    self._changed.notify_all()
            elif (begun := self._begin(or_wait=False)) is not None:
                self._do(*begun)
            elif not self._wait_for_next():
                return

    def close(self) -> None:
        """No further span is begun."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def forget(self) -> None:
        """Lets go of the work and its tensors: a busy machine's pool may hold a helper that was cancelled for long."""
        del self._spans, self._work
        self._done.clear()

    def _begin(self, *, or_wait: bool = True) -> tuple[int, Span] | None:
        with self._changed:
            while not self._closed:
                if self._begun < self._taken + self._ahead:
                    span = next(self._spans, None)
                    if span is None:
                        self._closed = True
                        break
                    self._begun += 1
                    return self._begun - 1, span
                if not or_wait:
                    break
                self._changed.wait()
            self._changed.notify_all()
            return None

    def _do(self, index: int, span: Span) -> None:
        found = self._work(span)
        with self._changed:
            self._done[index] = span, found
            if index == self._taken:
                self._changed.notify_all()

    def _wait_for_next(self) -> bool:
        """Returns False if all results have been taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._taken in self._done or self._taken == self._begun)
            return self._error is not None or self._taken < self._begun or not self._closed


def _started(count: int) -> ThreadPoolExecutor:
    """Starts single-threaded workers.

    torch.set_num_threads also changes the default of later threads, so that default is restored afterwards.
    """
    before, together = torch.get_num_threads(), Barrier(count + 1)
    places = iter(_places(count + 1)[1:])

    def start() -> None:
        _stay_on(next(places, None))
        torch.get_num_threads()  # a thread reads the global default at its first call, which must come before the next
        torch.set_num_threads(1)
        together.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="strips", initializer=start)
    for _ in range(count):
        pool.submit(nullcontext)
    together.wait()
    torch.set_num_threads(before)
    return pool


@contextmanager
def one_core() -> Iterator[None]:
    """Lets this thread use one core, because small operations take less time than cores need to wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _places(count: int) -> list[int]:
    """A core for each of `count` threads if this process may use exactly that many; otherwise no cores.

    *Why*: Linux wakes a thread on the core of the waking thread if the other cores seem busy. In a virtual machine
    sleeping cores seem busy, and the woken thread then waits for milliseconds.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    return cores if len(cores) == count else []


def _stay_on(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})


@contextmanager
def _on_first_core(count: int) -> Iterator[None]:
    places = _places(count)
    if not places:
        yield
        return
    os.sched_setaffinity(0, places[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, places)
