"""DecodeQueue: the asynchronous queue on an event loop in a thread of its own, for code that waits."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Self, TypeVar, Unpack

from remote_vae.client.aio_queue import AsyncDecodeQueue, Item, Progress
from remote_vae.client.latents import AnyTensor
from remote_vae.protocol.options import DecodeArguments

T = TypeVar("T")


class DecodeQueue:
    """Decodes latents in the background, several at a time, and hands the results out in the order of the puts.

    `AsyncDecodeQueue` for code that waits, with the same arguments; `on_done` is called in a thread.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        in_flight: int = 2,
        size: int = 8,
        on_done: Callable[[Item], Any] | None = None,
        progress: bool | Progress = False,
        token: str | None = None,
        timeout: float = 300.0,
        **options: Unpack[DecodeArguments],
    ) -> None:
        self._queue = AsyncDecodeQueue(
            endpoint,
            in_flight=in_flight,
            size=size,
            on_done=on_done,
            progress=progress,
            token=token,
            timeout=timeout,
            **options,
        )
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=_run_loop, args=(started,), name="remote-vae-queue", daemon=True)
        self._thread.start()
        self._loop = started.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        self.cancel()
        with suppress(Exception):  # boundary: what is under way is raised, and not what on_done says of its end
            self.close()

    def put(self, latent: AnyTensor, **options: Unpack[DecodeArguments]) -> Future[Any]:
        """The decode as a future, to be waited for or cancelled, or left to `on_done`; waits while there is no room.

        The latent is copied, so that it may change at once. *Raises* RuntimeError after `close`.
        """
        return self._put(latent, options)[1]

    def map(self, latents: Iterable[AnyTensor], **options: Unpack[DecodeArguments]) -> Iterator[Item]:
        """An item for each latent, in order; the next latents are made while the last ones are decoded.

        What is left when the iteration is abandoned is cancelled.
        """
        waiting = deque[tuple[int, Future[Any]]]()
        try:
            for latent in latents:
                waiting.append(self._put(latent, options))
                while waiting and (waiting[0][1].done() or len(waiting) >= self._queue.size):
                    yield _item(*waiting.popleft())
            while waiting:
                yield _item(*waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()

    def cancel(self) -> None:
        """Cancels what is not done; the server stops work on what is under way."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._queue.cancel)

    def close(self) -> None:
        """Waits for what was put, then ends the queue and its thread; *raises* the first error of `on_done`."""
        if self._thread.is_alive():
            try:
                self._call(self._queue.close())
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()

    def _put(self, latent: AnyTensor, options: DecodeArguments) -> tuple[int, Future[Any]]:
        if not self._thread.is_alive():
            raise RuntimeError("the queue is closed; nothing more can be put into it")
        index, task = self._call(self._queue.enqueue(latent, options))
        future: Future[Any] = Future()
        self._loop.call_soon_threadsafe(task.add_done_callback, lambda done: _copy(done, future))
        future.add_done_callback(lambda done: self._abandon(task) if done.cancelled() else None)
        return index, future

    def _abandon(self, task: asyncio.Task[Any]) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(task.cancel)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine gives on the loop; it is cancelled when the wait is interrupted."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _run_loop(started: Future[asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        started.set_result(loop)
        loop.run_forever()


def _copy(task: asyncio.Task[Any], future: Future[Any]) -> None:
    """The task's end becomes the future's, unless somebody has cancelled that."""
    if task.cancelled():
        future.cancel()
    if not future.set_running_or_notify_cancel():
        return
    error = task.exception()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


def _item(index: int, future: Future[Any]) -> Item:
    try:
        error = future.exception()
    except CancelledError as exc:
        error = exc
    return Item(index, error=error) if error is not None else Item(index, future.result())
