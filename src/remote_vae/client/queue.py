"""DecodeQueue: AsyncDecodeQueue for code that blocks, on an event loop in a thread."""

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Self, TypeVar, Unpack

from remote_vae.client.aio_queue import AsyncDecodeQueue, Item, Progress
from remote_vae.client.latents import AnyTensor
from remote_vae.client.network import PathText
from remote_vae.client.one_process import OneProcess
from remote_vae.protocol.options import DecodeArguments

T = TypeVar("T")


class DecodeQueue(OneProcess):
    """Decodes latents in the background, several at a time, and returns the results in the order of the puts.

    `AsyncDecodeQueue` for code that blocks, with the same arguments; `on_done` is called in a thread. A forked process
    must create another queue.
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
        ca_file: PathText | None = None,
        **options: Unpack[DecodeArguments],
    ) -> None:
        super().__init__()
        self._queue = AsyncDecodeQueue(
            endpoint,
            in_flight=in_flight,
            size=size,
            on_done=on_done,
            progress=progress,
            token=token,
            timeout=timeout,
            ca_file=ca_file,
            **options,
        )
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

    def put(self, latent: AnyTensor, **options: Unpack[DecodeArguments]) -> Future[Any]:
        """The decode as a future: wait for it, cancel it, or leave it to `on_done`; waits while there is no room.

        The latent is copied, so the caller may change it at once. *Raises* RuntimeError after `close`.
        """
        return self._put(latent, options)[1]

    def map(self, latents: Iterable[AnyTensor], **options: Unpack[DecodeArguments]) -> Iterator[Item]:
        """An item for each latent, in order; the next latents are made while the last ones are decoded.

        If the iteration is abandoned, the remaining items are cancelled.
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

    def _put(self, latent: AnyTensor, options: DecodeArguments) -> tuple[int, Future[Any]]:
        if not self._thread.is_alive():
            self.check_process()
            raise RuntimeError("the queue is closed; nothing more can be put into it")
        index, task = self._call(self._queue.enqueue(latent, options))
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
    with suppress(RuntimeError), asyncio.Runner() as runner:
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


def _item(index: int, future: Future[Any]) -> Item:
    try:
        error = future.exception()
    except CancelledError as exc:
        error = exc
    return Item(index, error=error) if error is not None else Item(index, future.result())
