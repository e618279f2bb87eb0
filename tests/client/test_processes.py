"""Threads, forked processes, event loops, signals and the interpreter's end."""

import asyncio
import gc
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

from remote_vae.client import AsyncClient, AsyncDecodeQueue, Client, DecodeQueue

from .conftest import read_request

WAIT = 60.0  # seconds, which a busy machine may need


def latent(value: float) -> np.ndarray:
    return np.full((1, 3, 4, 4), value, np.float32)


class Echo:
    """A server that sends every latent back as pixels, over connections that it keeps, and counts them."""

    def __init__(self) -> None:
        self.connections = 0
        self.hung_up = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while True:
                body = read_request(connection).body
                head = "HTTP/1.1 200 OK\r\ncontent-type: tensor/binary\r\nshape: [1, 3, 4, 4]\r\ndtype: float32\r\n"
                connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.hung_up.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


def decode(client: Client, value: float) -> float:
    return float(client.decode(latent(value), output_type="pt")[0, 0, 0, 0])


def test_threads_share_a_client(echo: Echo) -> None:
    """Eight threads that share one client each get the reply to their own request."""
    values = [float(n) for n in range(200)]
    with Client(echo.url) as client, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda value: decode(client, value), values)) == values
    assert echo.connections <= 8


def decode_in_a_child(client: Client, values: list[float], found: Any) -> None:
    try:
        found.put([decode(client, value) for value in values])
        client.close()
    except Exception as exc:  # noqa: BLE001  # the parent shows it
        found.put(repr(exc))


def test_a_forked_process_opens_connections_of_its_own(echo: Echo) -> None:
    """Parent and children use a client that has a connection at the same time; each gets its own replies."""
    context = get_context("fork")
    found = context.Queue()
    with Client(echo.url, timeout=20) as client:
        assert decode(client, 0.5) == 0.5
        lists = [[float(100 * child + n) for n in range(50)] for child in range(3)]
        children = [
            context.Process(target=decode_in_a_child, args=(client, values, found), daemon=True) for values in lists
        ]
        for child in children:
            child.start()
        mine = [decode(client, float(-n)) for n in range(50)]
        theirs = [found.get(timeout=WAIT) for _ in children]
        for child in children:
            child.join(WAIT)
        assert mine == [float(-n) for n in range(50)]
        assert sorted(theirs) == lists
        assert decode(client, 7.0) == 7.0, "a child that closes its client leaves the parent's connection alone"
    assert echo.connections == 1 + len(children)


async def decode_async(client: AsyncClient, value: float) -> float:
    return float((await client.decode(latent(value), output_type="pt"))[0, 0, 0, 0])


def test_an_async_client_in_one_event_loop_after_the_other(echo: Echo) -> None:
    """Each `asyncio.run` has connections of its own, which are closed with its loop, without a warning."""
    client = AsyncClient(echo.url)
    for value in (1.0, 2.0, 3.0):
        echo.hung_up.clear()
        assert asyncio.run(decode_async(client, value)) == value
        assert echo.hung_up.wait(WAIT)
    gc.collect()
    assert echo.connections == 3


def test_an_async_client_in_two_event_loops_at_once(echo: Echo) -> None:
    """Two threads, each with a running loop, share an AsyncClient; each loop keeps its own connection."""
    client = AsyncClient(echo.url)
    both = threading.Barrier(2, timeout=WAIT)

    async def several(start: int) -> list[float]:
        both.wait()
        return [await decode_async(client, float(start + n)) for n in range(20)]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda start: asyncio.run(several(start)), (0, 100)))
    assert found == [[float(start + n) for n in range(20)] for start in (0, 100)]
    assert echo.connections == 2


async def test_the_blocking_clients_work_inside_a_running_loop(echo: Echo) -> None:
    """Client and DecodeQueue may be called where an event loop runs, as in a notebook."""
    with Client(echo.url) as client:
        assert decode(client, 1.0) == 1.0
    with DecodeQueue(echo.url, output_type="pt") as queue:
        assert [float(item.result()[0, 0, 0, 0]) for item in queue.map([latent(2.0), latent(3.0)])] == [2.0, 3.0]


async def test_a_queue_whose_close_is_cancelled_closes_its_connections(serve: Any, answers: Any) -> None:
    """If the wait of `close` is cancelled, what is at the server hangs up and no connection stays open."""
    reached, hung_up = threading.Event(), threading.Event()

    def hold(connection: socket.socket) -> None:
        reached.set()
        connection.settimeout(WAIT)
        if connection.recv(1) == b"":
            hung_up.set()

    server = serve(answers.picture(connection="keep-alive"))
    server.acts.append(hold)
    queue = AsyncDecodeQueue(server.url, in_flight=1)
    await (await queue.put(latent(0.0)))
    task = await queue.put(latent(1.0))
    assert await asyncio.to_thread(reached.wait, WAIT)
    closing = asyncio.create_task(queue.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await asyncio.wait([task], timeout=WAIT)
    assert task.cancelled()
    assert await asyncio.to_thread(hung_up.wait, WAIT)
    with pytest.raises(RuntimeError, match="closed"):
        await queue._end.__self__.decode(latent(0.0))  # its client


ENDS = {
    "client": "client = Client(url); client.decode(latent)",
    "thread": "client = Client(url); threading.Thread(target=hang, args=(client,), daemon=True).start(); wait()",
    "async client": "client = AsyncClient(url); asyncio.run(client.decode(latent))",
    "queue": "queue = DecodeQueue(url); queue.put(latent).result()",
    "busy queue": "queue = DecodeQueue(hanging, on_done=print); [queue.put(latent) for _ in range(4)]; wait()",
    "previews": "previews = preview_callback(url, print); previews(None, 0, 0, {'latents': latent})",
}
BEFORE = """
import asyncio, sys, threading, numpy
from remote_vae import AsyncClient, Client, DecodeQueue, preview_callback
url, hanging = sys.argv[1:]
latent = numpy.zeros((1, 4, 4, 4), "float32")
def hang(client): Client(hanging).decode(latent)
def wait(): sys.stdin.read(1)
"""
# A shell starts what runs in its background without Control-C, and children inherit that.
CONTROL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


@pytest.mark.parametrize("name", ENDS)
def test_the_interpreter_ends_without_a_word(serve: Any, answers: Any, name: str) -> None:
    """A program that forgets to close, or ends with requests under way, ends at once and prints nothing."""
    reached = threading.Event()
    server, hanging = serve(answers.picture()), serve(b"")
    hanging.acts[0] = lambda connection: (reached.set(), hanging.over.wait(WAIT))
    command = [sys.executable, "-W", "ignore::ResourceWarning", "-c", BEFORE + ENDS[name], server.url, hanging.url]
    process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True)
    if "wait()" in ENDS[name]:
        assert reached.wait(WAIT)
    out, err = process.communicate("x", timeout=WAIT)
    assert (process.returncode, out, err) == (0, "", "")
    assert not hanging.over.is_set()


@pytest.mark.parametrize("how", ["Client(url).decode(latent)", "DecodeQueue(url).put(latent).result()"])
def test_an_interrupt_ends_a_call_at_once(serve: Any, how: str) -> None:
    """Control-C during a call raises KeyboardInterrupt, and the server sees that the client has gone."""
    reached, hung_up = threading.Event(), threading.Event()

    def hold(connection: socket.socket) -> None:
        reached.set()
        connection.settimeout(WAIT)
        if connection.recv(1) == b"":
            hung_up.set()

    server = serve(hold)
    caught = "print('interrupted', flush=True); wait()"
    code = f"{BEFORE}\n{CONTROL_C}\ntry:\n    {how}\nexcept KeyboardInterrupt:\n    {caught}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, server.url, server.url], stdin=-1, stdout=-1, stderr=-1, text=True
    )
    assert reached.wait(WAIT)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "interrupted\n"
    if how.startswith("Client"):
        assert hung_up.wait(WAIT), "the process still runs, so it is the call that hung up"
    _, err = process.communicate("x", timeout=WAIT)
    assert hung_up.wait(WAIT)
    assert (process.returncode, err) == (0, "")


def test_a_connection_that_the_server_closed_while_idle(serve: Any, answers: Any) -> None:
    """A call after the server has closed the idle connection opens another one."""
    closed = threading.Event()

    def once(connection: socket.socket) -> None:
        connection.sendall(answers.picture(connection="keep-alive"))
        connection.close()
        closed.set()

    server = serve(once)
    with Client(server.url, retries=1) as client:
        for _ in range(3):
            closed.clear()
            assert client.decode(np.zeros((1, 4, 4, 4), np.float32)).size == (32, 32)
            assert closed.wait(WAIT)
    assert len(server.seen) == 3
