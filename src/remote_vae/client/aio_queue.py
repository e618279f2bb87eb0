"""AsyncDecodeQueue: latents are decoded in the background while the next ones are generated."""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, Unpack

from remote_vae.client.clients import AsyncClient
from remote_vae.client.latents import AnyTensor, copy_of
from remote_vae.client.network import PathText
from remote_vae.client.one_process import OneProcess
from remote_vae.errors import InvalidValue
from remote_vae.protocol.options import DecodeArguments

if TYPE_CHECKING:
    from remote_vae.client.progress import Bar

TRIES: Final = 10_000  # in effect without limit: an item's tries end with its time-out
END: Final = object()


@dataclass(frozen=True, slots=True)
class Item:
    """The result of the latent that was put as number `index`, from 0: a value, or an error in its place."""

    index: int
    value: Any = None
    error: BaseException | None = None

    def result(self) -> Any:
        """The value; *raises* the error."""
        if self.error is not None:
            raise self.error
        return self.value


class Progress(Protocol):
    """A progress bar, such as one of tqdm."""

    def update(self, n: int) -> object: ...


class AsyncDecodeQueue(OneProcess):
    """Decodes latents in the background, several at a time, and returns the results in the order of the puts.

    At most `size` items are in the queue: they wait, are decoded, or are held back by an earlier item. `put` waits for
    room. At most `in_flight` items are at the server. If the connection is lost or the server refuses an item for now,
    the item is sent again until its `timeout` is over, so the server may be restarted; any other error stays with its
    item. `on_done` is called with every `Item`, in order: awaited if it is a coroutine function, otherwise in a
    thread; `close` raises its first exception. `progress` is True for a bar, or an object with `update(n)`. `options`
    are those of `Client.decode`, for every latent.
    *Units*: timeout in seconds, for each item. *Raises* InvalidValue, ConfigurationError.
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
        if not 1 <= in_flight <= size:
            raise InvalidValue(f"in_flight={in_flight} must be at least 1 and at most size={size}")
        super().__init__()
        self.size = size
        self._client = AsyncClient(endpoint, token=token, timeout=timeout, ca_file=ca_file, retries=TRIES)
        self._options = options
        self._on_done = on_done
        self._bar = _bar() if progress is True else None
        self._progress: Progress | None = self._bar or progress or None  # type: ignore[assignment]
        self._room = asyncio.Semaphore(size)
        self._lane = asyncio.Semaphore(in_flight)
        self._order: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue()
        self._tasks = set[asyncio.Task[Any]]()
        self._delivery: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._closed = False
        self._count = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.close()
            return
        self.cancel()
        with suppress(Exception):  # boundary: the block's own exception counts, not that of on_done
            await self.close()

    async def put(self, latent: AnyTensor, **options: Unpack[DecodeArguments]) -> asyncio.Task[Any]:
        """The decode as a task, which may be awaited, cancelled, or left to `on_done`; waits while there is no room.

        The latent is copied, so the caller may change it at once. *Raises* RuntimeError after `close`.
        """
        return (await self.enqueue(latent, options))[1]

    async def enqueue(self, latent: AnyTensor, options: DecodeArguments) -> tuple[int, asyncio.Task[Any]]:
        """`put`, with the item's number."""
        held = copy_of(latent)
        self._check_open()
        await self._room.acquire()
        self._check_open()
        task = asyncio.create_task(self._decode(held, {**self._options, **options}))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._order.put_nowait(task)
        if self._delivery is None:
            self._delivery = asyncio.create_task(self._deliver())
        if self._bar is not None:
            self._bar.expect(1)
        self._count += 1
        return self._count - 1, task

    async def map(
        self, latents: Iterable[AnyTensor] | AsyncIterable[AnyTensor], **options: Unpack[DecodeArguments]
    ) -> AsyncIterator[Item]:
        """An item for each latent, in order, while the next latents are made; an ordinary iterable runs in a thread.

        If the iteration is abandoned, the remaining items are cancelled.
        """
        waiting = deque[tuple[int, asyncio.Task[Any]]]()
        try:
            async for latent in _each(latents):
                waiting.append(await self.enqueue(latent, options))
                while waiting and (waiting[0][1].done() or len(waiting) >= self.size):
                    yield await _settled(*waiting.popleft())
            while waiting:
                yield await _settled(*waiting.popleft())
        finally:
            for _, task in waiting:
                task.cancel()

    def cancel(self) -> None:
        """Cancels all unfinished items; the server stops its work on them."""
        for task in tuple(self._tasks):
            task.cancel()

    async def close(self) -> None:
        """Waits for all items, then ends the queue; *raises* the first exception of `on_done`.

        If this wait is cancelled, the items are cancelled too.
        """
        if self._closed:
            return
        self._closed = True
        self._order.put_nowait(None)
        try:
            if self._delivery is not None:
                await self._delivery
        finally:
            self.cancel()
            await self._client.close()
            if self._bar is not None:
                self._bar.close()
        if self._failure is not None:
            raise self._failure

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the queue is closed; nothing more can be put into it")

    async def _decode(self, latent: AnyTensor, options: DecodeArguments) -> Any:
        async with self._lane:
            return await self._client.decode(latent, **options)

    async def _deliver(self) -> None:
        """Hands out one item after the other, in the order of the puts; each makes room for another."""
        index = 0
        while (task := await self._order.get()) is not None:
            item = await _settled(index, task)
            if self._on_done is not None:
                await self._tell(self._on_done, item)
            if self._progress is not None:
                self._progress.update(1)
            self._room.release()
            index += 1

    async def _tell(self, on_done: Callable[[Item], Any], item: Item) -> None:
        try:
            if inspect.iscoroutinefunction(on_done):
                await on_done(item)
            else:
                await asyncio.to_thread(on_done, item)
        except Exception as exc:  # noqa: BLE001  # boundary: the caller's own code must not stop the other items
            self._failure = self._failure or exc


async def _settled(index: int, task: asyncio.Task[Any]) -> Item:
    """The task's item; if this wait is cancelled, the task goes on."""
    await asyncio.wait([task])
    if task.cancelled():
        return Item(index, error=CancelledError("the item was cancelled"))
    error = task.exception()
    return Item(index, error=error) if error is not None else Item(index, task.result())


def _bar() -> "Bar":
    """Imports the bar only if there is one, because its import takes longer than that of the client."""
    from remote_vae.client.progress import Bar

    return Bar()


async def _each(latents: Iterable[AnyTensor] | AsyncIterable[AnyTensor]) -> AsyncIterator[AnyTensor]:
    if isinstance(latents, AsyncIterable):
        async for latent in latents:
            yield latent
        return
    iterator = iter(latents)
    while (latent := await asyncio.to_thread(next, iterator, END)) is not END:
        yield latent
