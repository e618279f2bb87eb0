"""AsyncDecodeQueue: the next latent is generated while the last ones are decoded."""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, Unpack

from remote_vae.client.aio import AsyncClient
from remote_vae.client.latents import AnyTensor, copy_of
from remote_vae.errors import InvalidValue
from remote_vae.protocol.options import DecodeArguments

if TYPE_CHECKING:
    from remote_vae.client.progress import Bar

TRIES: Final = 10_000  # an item's tries end with its time-out, so that a server may start anew in between
END: Final = object()


@dataclass(frozen=True, slots=True)
class Item:
    """What became of the latent that was put as number `index`, from 0: a value, or the error in its place."""

    index: int
    value: Any = None
    error: BaseException | None = None

    def result(self) -> Any:
        """The value; *raises* the error."""
        if self.error is not None:
            raise self.error
        return self.value


class Progress(Protocol):
    """What a progress bar must have; tqdm's have it."""

    def update(self, n: int) -> object: ...


class AsyncDecodeQueue:
    """Decodes latents in the background, several at a time, and hands the results out in the order of the puts.

    At most `size` items are waiting, on their way, or held back by an earlier one; `put` waits for room. `in_flight`
    of them are on their way to the server. An item is sent again until `timeout` is over, so a server may start anew
    in between; what fails for good stays with its item. `on_done` gets every `Item`, in order: awaited when it is a
    coroutine function, else in a thread; what it raises is raised by `close`. `progress` is True for a bar, or an
    object with `update(n)`. `options` are those of `AsyncClient.decode`, for every latent.
    *Units*: timeout in seconds, per item. *Raises* InvalidValue, ConfigurationError.
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
        if not 1 <= in_flight <= size:
            raise InvalidValue(f"in_flight={in_flight} must be at least 1 and at most size={size}")
        self.size = size
        self._client = AsyncClient(endpoint, token=token, timeout=timeout, retries=TRIES)
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
        with suppress(Exception):  # boundary: what is under way is raised, and not what on_done says of its end
            await self.close()

    async def put(self, latent: AnyTensor, **options: Unpack[DecodeArguments]) -> asyncio.Task[Any]:
        """The decode as a task, to be awaited or cancelled, or left to `on_done`; waits while there is no room.

        The latent is copied, so that it may change at once. *Raises* RuntimeError after `close`.
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

        What is left when the iteration is abandoned is cancelled.
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
        """Cancels what is not done; the server stops work on what is under way."""
        for task in tuple(self._tasks):
            task.cancel()

    async def close(self) -> None:
        """Waits for what was put, then ends the queue; *raises* the first error that `on_done` raised."""
        if not self._closed:
            self._closed = True
            self._order.put_nowait(None)
            if self._delivery is not None:
                await self._delivery
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
        """One item after the other, as they were put, whatever becomes of each; then there is room for another."""
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
        except Exception as exc:  # noqa: BLE001  # boundary: the caller's own code; the other items go on
            self._failure = self._failure or exc


async def _settled(index: int, task: asyncio.Task[Any]) -> Item:
    """The task's item; the task is not cancelled with whoever waits here."""
    await asyncio.wait([task])
    if task.cancelled():
        return Item(index, error=CancelledError("the item was cancelled"))
    error = task.exception()
    return Item(index, error=error) if error is not None else Item(index, task.result())


def _bar() -> "Bar":
    """Imported when it is asked for: it takes longer than the client itself."""
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
