"""A queue of work for a server, done in the background, several items at a time, with the results in order."""

import asyncio
import inspect
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeAlias, TypedDict, TypeVar

from remote_vae.client.one_process import OneProcess
from remote_vae.errors import InvalidValue
from remote_vae.python310 import Self

if TYPE_CHECKING:
    from remote_vae.client.progress import Bar

T = TypeVar("T")
# Does one item with its options, and holds the lane while the item is at the server.
Work: TypeAlias = Callable[[asyncio.Semaphore, T, Mapping[str, Any]], Awaitable[Any]]

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


class QueueArguments(TypedDict, total=False):
    """What every queue may be told."""

    in_flight: int
    size: int
    on_done: Callable[[Item], Any] | None
    progress: bool | Progress


class AsyncQueue(OneProcess, Generic[T]):
    """Does `work` for what is put into it, in the background; see `AsyncDecodeQueue` for the rules.

    `hold` returns an item as it is kept until its turn comes: a copy of what the caller may change. `close` is awaited
    at the end. `options` are those of every item. *Raises* InvalidValue.
    """

    def __init__(
        self,
        work: Work[T],
        *,
        hold: Callable[[T], T],
        close: Callable[[], Awaitable[None]],
        options: Mapping[str, Any],
        in_flight: int = 2,
        size: int = 8,
        on_done: Callable[[Item], Any] | None = None,
        progress: bool | Progress = False,
    ) -> None:
        if not 1 <= in_flight <= size:
            raise InvalidValue(f"in_flight={in_flight} must be at least 1 and at most size={size}")
        super().__init__()
        self.size = size
        self._work, self._end, self._options = work, close, options
        self.hold = hold
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

    async def enqueue(self, item: T, options: Mapping[str, Any]) -> tuple[int, asyncio.Task[Any]]:
        """The item's number, and its result as a task; waits while there is no room. *Raises* RuntimeError if closed.

        The item is held as it is, so it must have been given to `hold`.
        """
        self._check_open()
        await self._room.acquire()
        self._check_open()
        task = asyncio.ensure_future(self._work(self._lane, item, {**self._options, **options}))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._order.put_nowait(task)
        if self._delivery is None:
            self._delivery = asyncio.create_task(self._deliver())
        if self._bar is not None:
            self._bar.expect(1)
        self._count += 1
        return self._count - 1, task

    async def items(
        self, items: Iterable[T] | AsyncIterable[T], options: Mapping[str, Any], *, ordered: bool = True
    ) -> AsyncGenerator[Item]:
        """An `Item` for each item, in order or as each is done; an ordinary iterable runs in a thread.

        If the iteration is abandoned, the remaining items are cancelled.
        """
        waiting = deque[tuple[int, asyncio.Task[Any]]]()
        try:
            async for item in _each(items):
                waiting.append(await self.enqueue(self.hold(item), options))
                while waiting and (len(waiting) >= self.size or place_of_done(waiting, ordered=ordered) is not None):
                    yield await _next(waiting, ordered=ordered)
            while waiting:
                yield await _next(waiting, ordered=ordered)
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
            await self._end()
            if self._bar is not None:
                self._bar.close()
        if self._failure is not None:
            raise self._failure

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the queue is closed; nothing more can be put into it")

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


def place_of_done(waiting: Sequence[tuple[int, Any]], *, ordered: bool) -> int | None:
    """Where the next item that is done stands: the first one, if they are to come in order; None if it is not done."""
    places = range(min(1, len(waiting)) if ordered else len(waiting))
    return next((place for place in places if waiting[place][1].done()), None)


async def _next(waiting: deque[tuple[int, asyncio.Task[Any]]], *, ordered: bool) -> Item:
    """Waits for the next item and takes it out."""
    await asyncio.wait([task for _, task in waiting][: 1 if ordered else None], return_when=asyncio.FIRST_COMPLETED)
    place = place_of_done(waiting, ordered=ordered)
    assert place is not None, "one of them has been waited for"
    index, task = waiting[place]
    del waiting[place]
    return await _settled(index, task)


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


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    iterator: Iterator[Any] = iter(items)
    while (found := await asyncio.to_thread(_next_of, iterator)) is not END:
        yield found


def _next_of(iterator: Iterator[Any]) -> Any:
    return next(iterator, END)
