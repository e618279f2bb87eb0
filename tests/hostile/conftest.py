"""The servers under attack, and a raw connection to them."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest


@dataclass(frozen=True)
class Answer:
    """What came back on a raw connection: every status line, and the last answer's headers and body."""

    statuses: list[int]
    headers: dict[str, str]
    body: bytes

    @property
    def status(self) -> int:
        return self.statuses[-1] if self.statuses else 0

    def json(self) -> Any:
        return json.loads(self.body)


class Raw:
    """Bytes to a server as they are, and its answers."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.address = (str(parts.hostname), int(parts.port or 80))

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=30)

    def exchange(self, data: bytes) -> Answer:
        """Sends, and reads one answer, past any 100 Continue."""
        with self.connect() as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before the end
                connection.sendall(data)
            return self.read(connection)

    def read(self, connection: socket.socket) -> Answer:
        statuses: list[int] = []
        with connection.makefile("rb") as stream:
            while not statuses or statuses[-1] == 100:
                line = stream.readline()
                if not line:
                    return Answer(statuses, {}, b"")
                statuses.append(int(line.split()[1]))
                headers = {name.lower(): value for name, value in http.client.parse_headers(stream).items()}
            body = stream.read(int(headers.get("content-length", 0)))
        return Answer(statuses, headers, body)

    def cut_off(self, connection: socket.socket, drop: bytes, *, within: float) -> bool:
        """Whether the server ends a connection on which a few bytes come now and then."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            try:
                connection.sendall(drop)
            except (BrokenPipeError, ConnectionResetError):
                return True
            time.sleep(0.1)
        return False

    def closed(self, connection: socket.socket, *, within: float) -> bool:
        """Whether the server closes the connection in time, whatever it says before."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            connection.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                if not connection.recv(65536):
                    return True
            except ConnectionResetError:
                return True
            except TimeoutError:
                break
        return False


@pytest.fixture(scope="session")
def raw(live: Any) -> Raw:
    return Raw(live.url)


@pytest.fixture(scope="session")
def good(live: Any) -> Any:
    """A request that must always work, and what it must give."""
    body = np.linspace(-1, 1, 256, dtype=np.float32).tobytes()

    def ask() -> bytes:
        headers = {"content-type": "tensor/binary"}
        reply = live.post("/sd?shape=1,4,8,8&dtype=float32&output_type=pt", data=body, headers=headers)
        assert reply.status_code == 200
        return bytes(reply.content)

    return ask


@pytest.fixture
def _then_works(good: Any, expected: bytes) -> Iterator[None]:
    """After the test, the good request gives the same bytes as ever."""
    yield
    assert good() == expected


@pytest.fixture(scope="session")
def expected(good: Any) -> bytes:
    found: bytes = good()
    return found


@dataclass(frozen=True)
class Target:
    """A server whose VAE copies, or misbehaves when asked to, and a raw connection to it."""

    server: Any
    raw: Raw


@pytest.fixture(scope="module")
def patient(start: Any) -> Iterator[Target]:
    """With the limits that a user has."""
    with start("copy", max_body_bytes=64 * 2**20) as server:
        yield Target(server, Raw(server.url))


@pytest.fixture(scope="module")
def impatient(start: Any) -> Iterator[Target]:
    """Waits for one second where others wait for ten or sixty."""
    with start("copy", head_seconds=1, body_seconds=1) as server:
        yield Target(server, Raw(server.url))
