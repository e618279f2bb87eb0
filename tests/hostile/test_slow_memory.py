"""What clients cost that hold connections open and send or take next to nothing: 40 kB beside what they have sent.

CONNECTIONS=500 tries as many, and `-s` shows the figures; the goal is that 500 take less than 150 MB.
"""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from .test_patience import resident_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

CONNECTIONS = int(os.environ.get("CONNECTIONS", "100"))
MOST_BYTES = 40_000
HEAD = b"POST /encode HTTP/1.1\r\nhost: a\r\ncontent-type: image/png\r\n"
BODY = HEAD + b"content-length: 10000000\r\n\r\n"

Send = Callable[[socket.socket], None]


def drop_by_drop(data: bytes) -> Send:
    """Sends one byte after the other, each of which the server reads by itself."""

    def send(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(data)):
            connection.sendall(data[at : at + 1])

    return send


def at_once(data: bytes) -> Send:
    return lambda connection: connection.sendall(data)


# By what they cost, since a server keeps for the next what it has had for the one before.
KINDS: dict[str, tuple[Send, int]] = {
    "nothing": (at_once(b""), 0),
    "a head, byte by byte": (drop_by_drop(HEAD), 0),
    "a large head": (at_once(HEAD + b"x-a: " + b"b" * 16_000), 16_000),
    "replies that are not read": (at_once(b"GET /docs HTTP/1.1\r\nhost: a\r\n\r\n" * 100), 65_536),
    "a body, byte by byte": (drop_by_drop(BODY + bytes(60)), 0),
    "64 KiB of a body": (at_once(BODY + bytes(65_536)), 65_536),
    "256 KiB of a body": (at_once(BODY + bytes(262_144)), 262_144),
}


@pytest.mark.parametrize("kind", KINDS)
def test_slow_clients(patient: Any, kind: str) -> None:
    """A connection costs little more than the bytes that it has sent, and other clients are served meanwhile."""
    server, (send, sent) = patient.server, KINDS[kind]
    assert server.decode().status_code == 200
    before = resident_bytes(server.process.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            connection = stack.enter_context(patient.raw.connect())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            send(connection)
        time.sleep(0.5)
        assert server.decode().status_code == 200
        found = resident_bytes(server.process.pid) - before
    print(f"{CONNECTIONS} connections, {kind}: {found / 1e6:.0f} MB")
    assert found < (sent + MOST_BYTES) * CONNECTIONS
