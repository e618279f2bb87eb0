"""A small HTTP server on loopback that answers as it is told, rightly or wrongly, and both clients to meet it."""

import asyncio
import io
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remote_vae.client import AsyncClient, Client


@dataclass
class Seen:
    """A request as the server got it; header names are lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Act = Callable[[socket.socket], None]


class FaultServer:
    """Answers request n with act n, the last one again and again; bytes are sent, callables get the socket."""

    def __init__(self, *acts: bytes | Act) -> None:
        self.acts = list(acts)
        self.seen: list[Seen] = []
        self.over = threading.Event()
        self.reads = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def close(self) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(5)
            try:
                act = self.acts[min(len(self.seen), len(self.acts) - 1)]
                if self.reads:
                    self.seen.append(read_request(connection))
                if callable(act):
                    act(connection)
                else:
                    connection.sendall(act)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
            except OSError:
                return

    def stall(self, *before: bytes, every: float = 30.0) -> Act:
        """Sends the pieces with a pause after each, then nothing, without hanging up."""

        def act(connection: socket.socket) -> None:
            for piece in before:
                connection.sendall(piece)
                self.over.wait(every)
            self.over.wait(30)

        return act


def read_request(connection: socket.socket) -> Seen:
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += receive(connection)
    method, target, _ = first.split(" ")
    return Seen(method, target, headers, body)


def receive(connection: socket.socket) -> bytes:
    """*Raises* OSError when the client has gone: a thread that went on reading would keep a core busy."""
    piece = connection.recv(65536)
    if not piece:
        raise OSError("gone")
    return piece


def http(status: int, body: bytes, **headers: str) -> bytes:
    """A whole reply; `content_length=""` leaves the length to the end of the connection."""
    fields = {"content_length": str(len(body)), "connection": "close", **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value]
    return f"HTTP/1.1 {status} Some\r\n".encode() + "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Answers:
    """Replies as a right server gives them."""

    http = staticmethod(http)

    @staticmethod
    def tensor(array: np.ndarray, **headers: str) -> bytes:
        fields = {
            "content_type": "tensor/binary",
            "shape": json.dumps(list(array.shape)),
            "dtype": array.dtype.name,
            **headers,
        }
        return http(200, array.tobytes(), **fields)

    @staticmethod
    def picture(size: tuple[int, int] = (32, 32), form: str = "png", **headers: str) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", size, (200, 30, 60)).save(buffer, format=form)
        return http(200, buffer.getvalue(), **{"content_type": f"image/{form}", **headers})

    @staticmethod
    def error(status: int, code: str, **headers: str) -> bytes:
        document = {"error": "what was wrong", "error_type": code, "detail": {"n": 4}, "request_id": "r-1"}
        return http(status, json.dumps(document).encode(), content_type="application/json", **headers)

    @staticmethod
    def reset(data: bytes) -> Act:
        def act(connection: socket.socket) -> None:
            connection.sendall(data)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        return act


@pytest.fixture
def answers() -> type[Answers]:
    return Answers


@pytest.fixture
def serve() -> Iterator[Callable[..., FaultServer]]:
    servers: list[FaultServer] = []

    def start(*acts: bytes | Act) -> FaultServer:
        servers.append(FaultServer(*acts))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def latent() -> np.ndarray:
    return np.zeros((1, 4, 4, 4), np.float16)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_vae.client.retry.FIRST_PAUSE", 0.01)
    for name in ("REMOTE_VAE_API_KEY", "HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


Call = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    """`call(url, method, *arguments, client={...}, **options)` on a client of either kind."""

    def with_client(
        url: str, method: str, *arguments: Any, client: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        with Client(url, **(client or {})) as found:
            return getattr(found, method)(*arguments, **options)

    async def with_async_client(
        url: str, method: str, *arguments: Any, client: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        async with AsyncClient(url, **(client or {})) as found:
            return await getattr(found, method)(*arguments, **options)

    if request.param == "sync":
        return with_client
    return lambda *arguments, **options: asyncio.run(with_async_client(*arguments, **options))
