"""A queue for code that blocks: an AsyncQueue on an event loop in a thread."""

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import suppress
from typing import Any, Generic, TypeVar

from remote_vae.client.aio_queue import AsyncQueue, Item, place_of_done
from remote_vae.client.one_process import OneProcess
from remote_vae.python310 import Runner, Self

T = TypeVar("T")
Q = TypeVar("Q", bound=AsyncQueue[Any])


class Queue(OneProcess, Generic[Q]):
    """An `AsyncQueue` for code that blocks; `on_done` is called in a thread."""

    def __init__(self, queue: Q) -> None:
        super().__init__()
        self._queue = queue
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=_run_loop, args=(started,), name="remote-vae-queue", daemon=True)
        self._thread.start()
        self._loop = started.result()
        # Also at the interpreter's end, which would otherwise destroy tasks that wait and complain about them.
        self._end = weakref.finalize(self._thread, _end_thread, self._thread, self._loop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        self.cancel()
        with suppress(Exception):  # boundary: the block's own exception counts, not that of on_done
            self.close()

    def items(self, items: Iterable[Any], options: Mapping[str, Any], *, ordered: bool = True) -> Iterator[Item]:
        """An `Item` for each item, in order or as each is done; the next ones are made meanwhile.

        If the iteration is abandoned, the remaining items are cancelled.
        """
        waiting = deque[tuple[int, Future[Any]]]()
        try:
            for item in items:
                waiting.append(self.enqueue(item, options))
                while waiting and (
                    len(waiting) >= self._queue.size or place_of_done(waiting, ordered=ordered) is not None
                ):
                    yield _next(waiting, ordered=ordered)
            while waiting:
                yield _next(waiting, ordered=ordered)
        finally:
            for _, future in waiting:
                future.cancel()

    def cancel(self) -> None:
        """Cancels all unfinished items; the server stops its work on them."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._queue.cancel)

    def close(self) -> None:
        """Waits for all items, then ends the queue and its thread; *raises* the first exception of `on_done`."""
        if self._thread.is_alive():
            try:
                self._call(self._queue.close())
            finally:
                self._end()

    def enqueue(self, item: Any, options: Mapping[str, Any]) -> tuple[int, Future[Any]]:
        """The item's number, and its result as a future; waits while there is no room. *Raises* RuntimeError if closed.

        What the caller may change of the item is copied, in the caller's thread.
        """
        if not self._thread.is_alive():
            self.check_process()
            raise RuntimeError("the queue is closed; nothing more can be put into it")
        index, task = self._call(self._queue.enqueue(self._queue.hold(item), options))
        return index, asyncio.run_coroutine_threadsafe(_result(task), self._loop)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result; if the wait is interrupted, the coroutine is cancelled."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _run_loop(started: Future[asyncio.AbstractEventLoop]) -> None:
    # At the interpreter's end no thread can be started, not even the one with which a loop ends its executor.
    with suppress(RuntimeError), Runner() as runner:
        loop = runner.get_loop()
        started.set_result(loop)
        loop.run_forever()


def _end_thread(thread: threading.Thread, loop: asyncio.AbstractEventLoop) -> None:
    if thread.is_alive():
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def _result(task: asyncio.Task[Any]) -> Any:
    """The task's result; cancelling this wait cancels the task."""
    return await task


def _next(waiting: deque[tuple[int, Future[Any]]], *, ordered: bool) -> Item:
    """Waits for the next item and takes it out."""
    wait([future for _, future in waiting][: 1 if ordered else None], return_when=FIRST_COMPLETED)
    place = place_of_done(waiting, ordered=ordered)
    assert place is not None, "one of them has been waited for"
    index, future = waiting[place]
    del waiting[place]
    return _item(index, future)


def _item(index: int, future: Future[Any]) -> Item:
    try:
        error = future.exception()
    except CancelledError as exc:
        error = exc
    return Item(index, error=error) if error is not None else Item(index, future.result())
