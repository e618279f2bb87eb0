"""DecodeQueue and AsyncDecodeQueue: bounded, in order, and nothing is lost."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

from remote_vae import AsyncDecodeQueue, DecodeQueue
from remote_vae.client.aio_queue import Item
from remote_vae.errors import ConnectionFailed, InternalError, InvalidValue, LatentMismatch

SLEEP, RAISE = 8.0, 9.0  # a first value that makes the server's VAE sleep for a second, or raise


def latent(first: float, channels: int = 3) -> np.ndarray:
    found = np.full((1, channels, 4, 4), 0.5, np.float32)
    found[0, 0, 0, 0] = first
    return found


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert {thread.name for thread in left if "remote-vae" in thread.name or "asyncio" in thread.name} == set()


@pytest.fixture(scope="module")
def url(start: Any) -> Iterator[str]:
    with start("copy") as server:
        yield server.url


class Gate:
    """An act of the fault server: answers when it is opened."""

    def __init__(self, reply: bytes) -> None:
        self.reached, self.opened, self.hung_up = threading.Event(), threading.Event(), threading.Event()
        self._reply = reply

    def __call__(self, connection: socket.socket) -> None:
        self.reached.set()
        connection.settimeout(0.05)
        while not self.opened.is_set():
            with suppress(TimeoutError):
                if connection.recv(1) == b"":
                    self.hung_up.set()
                    return
        connection.sendall(self._reply)


def first(item: Item) -> float:
    return round(float(item.result()[0, 0, 0, 0]), 3)


def test_items_come_in_the_order_of_the_puts(url: str) -> None:
    """`map` gives one item per latent, numbered and in order, each with its own pixels."""
    values = [n / 10 for n in range(7)]
    with DecodeQueue(url, in_flight=3, size=4, output_type="pt") as queue:
        items = list(queue.map(latent(value) for value in values))
    assert [item.index for item in items] == list(range(7))
    assert [first(item) for item in items] == values


def test_a_retry_does_not_change_the_order(serve: Any, answers: Any) -> None:
    """An item that has to be sent again is handed out before the ones put after it, which were done earlier."""
    broken, gate = Gate(b""), Gate(answers.picture())
    server = serve(broken, answers.picture(), gate)
    seen: list[int] = []
    with DecodeQueue(server.url, in_flight=2, on_done=lambda item: seen.append(item.index)) as queue:
        first_put = queue.put(latent(0.0))
        assert broken.reached.wait(10)
        assert queue.put(latent(1.0)).result(10).size == (32, 32)
        broken.opened.set()
        assert gate.reached.wait(10)
        assert not first_put.done()
        assert seen == []
        gate.opened.set()
    assert seen == [0, 1]


def wait_for(condition: Any, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return bool(condition())


def test_putting_waits_for_room(serve: Any, answers: Any) -> None:
    """With `size` items outstanding the generator stops until the first of them has been handed out."""
    gate = Gate(answers.picture())
    server = serve(gate, answers.picture())
    done = threading.Event()
    with DecodeQueue(server.url, in_flight=1, size=2) as queue:
        queue.put(latent(0.0))
        queue.put(latent(1.0))
        thread = threading.Thread(target=lambda: (queue.put(latent(2.0)), done.set()))
        thread.start()
        assert not done.wait(0.3)
        gate.opened.set()
        assert done.wait(10)
        thread.join()
    assert len(server.seen) == 3


def test_no_more_than_in_flight_are_on_their_way(serve: Any, answers: Any) -> None:
    """The server sees `in_flight` requests at once, and the next only when one of them is answered."""
    gate = Gate(answers.picture())
    server = serve(gate)
    with DecodeQueue(server.url, in_flight=2, size=8) as queue:
        for value in range(5):
            queue.put(latent(float(value)))
        assert wait_for(lambda: len(server.seen) == 2)
        time.sleep(0.2)
        assert len(server.seen) == 2
        gate.opened.set()
    assert len(server.seen) == 5


def test_the_next_latent_is_made_while_the_last_is_decoded(serve: Any, answers: Any) -> None:
    """`map` asks its generator for the second latent while the first is still on its way."""
    gate = Gate(answers.picture())
    server = serve(gate)

    def generate() -> Iterator[np.ndarray]:
        yield latent(0.0)
        assert gate.reached.wait(10)
        yield latent(1.0)
        gate.opened.set()

    with DecodeQueue(server.url) as queue:
        assert [item.index for item in queue.map(generate())] == [0, 1]


def test_an_error_stays_with_its_item(url: str) -> None:
    """An item that fails for good carries its error; the items around it have their pixels."""
    latents = [latent(0.1), latent(RAISE), latent(0.2), latent(0.3, channels=4), latent(0.4)]
    with DecodeQueue(url, output_type="pt") as queue:
        items = list(queue.map(latents))
    assert [type(item.error) for item in items] == [type(None), InternalError, type(None), LatentMismatch, type(None)]
    assert [first(item) for item in items if item.error is None] == [0.1, 0.2, 0.4]
    with pytest.raises(LatentMismatch, match="4 channels"):
        items[3].result()


def test_a_server_that_starts_anew_loses_nothing(start: Any) -> None:
    """Items under way when the server is killed, and those that wait, are decoded by the one that takes its place."""
    with start("copy") as server:
        queue = DecodeQueue(server.url, in_flight=2, output_type="pt")
        futures = [queue.put(latent(value)) for value in (0.1, SLEEP, SLEEP, 0.4, 0.5)]
        assert futures[0].result(30).shape == (1, 3, 4, 4)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        with start("copy", port=server.port), queue:
            found = [float(future.result(60)[0, 0, 0, 0]) for future in futures]
    assert found == pytest.approx([0.1, SLEEP, SLEEP, 0.4, 0.5])


def test_an_item_is_given_up_when_its_time_is_over() -> None:
    """A server that never comes back costs each item its own time-out, and says that the connection failed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gone = f"http://127.0.0.1:{listener.getsockname()[1]}"
    started = time.monotonic()
    with DecodeQueue(gone, timeout=0.5) as queue:
        (item,) = queue.map([latent(0.0)])
    assert isinstance(item.error, ConnectionFailed)
    assert "127.0.0.1" in str(item.error)
    assert time.monotonic() - started < 3


def test_a_cancelled_item_leaves_the_server(serve: Any, answers: Any) -> None:
    """Cancelling what is under way hangs up, and what waits is never sent; the others are decoded."""
    gate = Gate(answers.picture())
    server = serve(gate, answers.picture())
    ends: list[Item] = []
    with DecodeQueue(server.url, in_flight=1, on_done=ends.append) as queue:
        under_way, waiting, other = (queue.put(latent(float(n))) for n in range(3))
        assert gate.reached.wait(10)
        assert waiting.cancel()
        assert under_way.cancel()
        assert gate.hung_up.wait(10)
        assert other.result(10).size == (32, 32)
    assert len(server.seen) == 2
    assert [type(item.error) for item in ends] == [CancelledError, CancelledError, type(None)]


def test_an_error_in_the_block_cancels_the_rest(serve: Any, answers: Any) -> None:
    """Leaving the `with` by an exception does not wait for what is under way, and raises that exception."""
    gate = Gate(answers.picture())
    server = serve(gate)
    with pytest.raises(KeyError, match="mine"), DecodeQueue(server.url) as queue:  # noqa: PT012  # the block is tested
        future = queue.put(latent(0.0))
        assert gate.reached.wait(10)
        raise KeyError("mine")
    assert gate.hung_up.wait(10)
    assert future.cancelled()


def test_an_abandoned_map_cancels_the_rest(serve: Any, answers: Any) -> None:
    """Breaking out of `map` cancels what it has put and nobody will look at."""
    gate = Gate(answers.picture())
    server = serve(answers.picture(), gate)
    with DecodeQueue(server.url, in_flight=1, size=2) as queue:
        for _ in queue.map(latent(float(n)) for n in range(5)):
            break
    assert len(server.seen) <= 2


def test_the_callback_gets_every_item_in_order_and_its_error_is_not_lost(url: str) -> None:
    """`on_done` is called for every item even when it has raised; `close` raises what it raised first."""
    seen: list[int] = []

    def on_done(item: Item) -> None:
        seen.append(item.index)
        if item.index == 1:
            raise ZeroDivisionError("mine")

    queue = DecodeQueue(url, on_done=on_done, output_type="pt")
    for n in range(4):
        queue.put(latent(n / 10))
    with pytest.raises(ZeroDivisionError, match="mine"):
        queue.close()
    assert seen == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="closed"):
        queue.put(latent(0.0))


def test_the_latent_may_change_after_the_put(serve: Any, answers: Any) -> None:
    """What is sent is what was put, though the caller has used its memory again."""
    gate = Gate(answers.picture())
    server = serve(gate, answers.picture())
    with DecodeQueue(server.url, in_flight=1) as queue:
        queue.put(latent(0.0))
        assert gate.reached.wait(10)
        for kind in (np.array, torch.from_numpy):
            again = kind(latent(3.0))
            queue.put(again)
            again[:] = 7.0
        gate.opened.set()
    assert [np.frombuffer(seen.body, np.float32)[0] for seen in server.seen] == [0.0, 3.0, 3.0]


class Count:
    def __init__(self) -> None:
        self.total = 0

    def update(self, n: int) -> None:
        self.total += n


def test_progress(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A bar of the caller's moves once for each item; with True one is drawn that counts to their number."""
    count = Count()
    for progress in (count, True):
        with DecodeQueue(url, progress=progress, output_type="pt") as queue:
            list(queue.map(latent(n / 10) for n in range(3)))
    assert count.total == 3
    assert "3/3" in capsys.readouterr().out


@pytest.mark.parametrize(("in_flight", "size"), [(0, 8), (3, 2)])
def test_bounds_that_cannot_be(in_flight: int, size: int) -> None:
    """in_flight is between 1 and size."""
    with pytest.raises(InvalidValue, match=f"in_flight={in_flight} .*size={size}"):
        DecodeQueue("http://127.0.0.1:1", in_flight=in_flight, size=size)


async def some(values: list[float]) -> AsyncIterator[np.ndarray]:
    for value in values:
        await asyncio.sleep(0)
        yield latent(value)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_async_map(url: str, kind: str) -> None:
    """The asynchronous queue maps generators of both kinds, and the loop goes on while an ordinary one works."""
    values, beats = [0.1, 0.2, 0.3], 0

    def slow() -> Iterator[np.ndarray]:
        for value in values:
            time.sleep(0.1)
            yield latent(value)

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    heart = asyncio.create_task(beat())
    async with AsyncDecodeQueue(url, output_type="pt") as queue:
        items = [item async for item in queue.map(slow() if kind == "sync" else some(values))]
    heart.cancel()
    assert [first(item) for item in items] == values
    assert kind == "async" or beats > 5


async def test_async_put_cancel_and_callback(serve: Any, answers: Any) -> None:
    """A put gives a task: cancelled it hangs up, awaited it gives the picture; coroutine callbacks are awaited."""
    gate = Gate(answers.picture())
    server = serve(gate, answers.picture())
    ends: list[int] = []

    async def on_done(item: Item) -> None:
        await asyncio.sleep(0)
        ends.append(item.index)

    async with AsyncDecodeQueue(server.url, in_flight=1, on_done=on_done) as queue:
        cancelled, other = await queue.put(latent(0.0)), await queue.put(latent(1.0))
        assert await asyncio.to_thread(gate.reached.wait, 10)
        cancelled.cancel()
        assert (await other).size == (32, 32)
    assert ends == [0, 1]
    assert gate.hung_up.wait(10)
    with pytest.raises(RuntimeError, match="closed"):
        await queue.put(latent(0.0))


async def test_async_putting_waits_for_room(serve: Any, answers: Any) -> None:
    """`await put` waits while `size` items are outstanding; an error in the block cancels them."""
    gate = Gate(answers.picture())
    server = serve(gate)
    with pytest.raises(KeyError):  # noqa: PT012  # the block is what is tested
        async with AsyncDecodeQueue(server.url, in_flight=1, size=1) as queue:
            await queue.put(latent(0.0))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(queue.put(latent(1.0)), 0.2)
            raise KeyError
    assert gate.hung_up.wait(10)
