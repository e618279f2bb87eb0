"""Strips side by side: each is computed on a core of its own, from its first operation to its last.

OpenMP, which torch's operations use, splits every one of them among all cores, and at its end each waits for the
others: thousands of times a picture. Here they wait for each other at the end of a layer.
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

# What every piece of work runs in, in whichever thread: torch's dispatch modes hold for one thread only.
WITHIN: Final[ContextVar[Callable[[], AbstractContextManager[object]]]] = ContextVar("within", default=nullcontext)


def cores(device: torch.device) -> int:
    """How many strips a device computes at a time. A CPU as many as torch has threads, others one: it fills them."""
    return torch.get_num_threads() if device.type == "cpu" else 1


@cache
def workers(count: int) -> "Workers":
    """The process's own; they wait for work as long as it lives."""
    return Workers(count)


class Workers:
    """This thread and others, each with one core; a single one has all the cores that torch gives it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = _started(count - 1) if count > 1 else None

    def each(self, spans: Iterable[Span], work: Callable[[Span], T], take: Callable[[Span, T], None]) -> None:
        """Gives what `work` makes of each span to `take`, in order and in this thread, while others are at work.

        The first error, in whichever of the three, is raised once nobody is at work any more.
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


class _Line(Generic[T]):
    """Spans that several threads serve. At most `ahead` have been begun and are not taken yet."""

    def __init__(self, spans: Iterator[Span], work: Callable[[Span], T], ahead: int) -> None:
        self._spans, self._work, self._ahead = spans, work, ahead
        self._changed = Condition()
        self._begun = self._taken = 0
        self._done: dict[int, tuple[Span, T]] = {}
        self._closed = False
        self._error: BaseException | None = None

    def help(self, within: Callable[[], AbstractContextManager[object]]) -> None:
        """Works until there is nothing left to begin."""
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
        """Works too, but takes first what is done."""
        while True:
            with self._changed:
                if self._error is not None:
                    raise self._error
                done = self._done.pop(self._taken, None)
            if done is not None:
                take(*done)
                del done  # `take` may have let it go
                with self._changed:
                    self._taken += 1
                    self._changed.notify_all()
            elif (begun := self._begin(or_wait=False)) is not None:
                self._do(*begun)
            elif not self._wait_for_next():
                return

    def close(self) -> None:
        """Nothing more is begun."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

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
        """False when everything has been taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._taken in self._done or self._taken == self._begun)
            return self._error is not None or self._taken < self._begun or not self._closed


def _started(count: int) -> ThreadPoolExecutor:
    """Threads with one core each. Saying that to torch also tells all threads to come, so it is taken back."""
    before, together = torch.get_num_threads(), Barrier(count + 1)
    places = iter(_places(count + 1)[1:])

    def start() -> None:
        _stay_on(next(places, None))
        torch.get_num_threads()  # the first call of a thread takes what all threads to come were told last
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
    """In which this thread uses one core: small operations take less time than cores wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _places(count: int) -> list[int]:
    """A core for each of so many threads, where they are to use all that this process may use; else none.

    *Why*: Linux wakes a thread on the core of the one that wakes it when it takes the others for busy, which in a
    virtual machine are those that sleep; there it waits for milliseconds.
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
