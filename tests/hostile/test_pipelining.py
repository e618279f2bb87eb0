"""Requests that come on one connection before the answers to the requests in front of them."""

import contextlib
import select
import socket
import sys
import threading
import time
from typing import Any

import pytest
import requests

from .test_connections import CHUNKED, END, LATENT, chunked, head
from .test_patience import HEAD, SLEEP, latent, peak_bytes, resident_bytes

GET = b"GET /live HTTP/1.1\r\nhost: a\r\n\r\n"
LAST = b"GET /live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


def sent(connection: socket.socket, data: bytes, *, seconds: float) -> int:
    """Bytes that the server takes in this time; the answers are read and dropped."""
    connection.setblocking(False)
    at, deadline = 0, time.monotonic() + seconds
    while at < len(data) and time.monotonic() < deadline:
        readable, writable, _ = select.select([connection], [connection], [], 0.1)
        if readable and not connection.recv(1 << 20):
            break
        if writable:
            with contextlib.suppress(BlockingIOError):
                at += connection.send(data[at : at + 2**18])
    return at


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("first", [HEAD + latent(SLEEP), b""], ids=["behind a slow request", "alone"])
def test_requests_are_not_taken_apart_ahead(patient: Any, first: bytes) -> None:
    """Two hundred thousand small requests on one connection cost a few megabytes, also behind one that takes long."""
    pid = patient.server.process.pid
    assert patient.server.decode().status_code == 200
    before, resident = peak_bytes(pid), resident_bytes(pid)
    with patient.raw.connect() as connection:
        threading.Timer(0.5, requests.get, [patient.server.url + "/live"], {"timeout": 60}).start()
        sent(connection, first + GET * 200_000, seconds=2)
        asked = time.monotonic()
        assert requests.get(patient.server.url + "/live", timeout=60).status_code == 200
        assert time.monotonic() - asked < 1
    assert max(0, peak_bytes(pid) - max(before, resident)) < 30 * 2**20


@pytest.mark.parametrize("framing", ["length", "chunks", "many chunks"])
def test_all_are_answered(raw: Any, expected: bytes, framing: str) -> None:
    """Hundreds of requests with and without bodies, all sent at once, are answered, each with its own answer."""
    body = LATENT
    one = {
        "length": head("content-length: 1024") + body,
        "chunks": head(CHUNKED) + chunked(body) + END,
        "many chunks": head(CHUNKED) + chunked(*(body[i : i + 3] for i in range(0, 1024, 3))) + END,
    }[framing]
    long = head(f"content-length: {2**20}", target="/nobody/encode") + bytes(2**20)
    data = (one + b"\r\n" * 3 + GET * 50) * 20 + long + GET + one + LAST
    with raw.connect() as connection:
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        answers = b"".join(iter(lambda: connection.recv(65536), b""))
        sender.join()
    statuses = [int(answer[:3]) for answer in answers.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200] * (51 * 20) + [404] + [200] * 3
    assert answers.count(expected) == 21
