"""Bytes that are no good request, sent as they are: framing, sizes, and clients that stall or go away."""

import contextlib
import json
import socket
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("_then_works")

LATENT = np.linspace(-1, 1, 256, dtype=np.float32).tobytes()
TARGET = "/sd/decode?shape=1,4,8,8&dtype=float32&output_type=pt"


def head(
    *lines: str, target: str = TARGET, method: str = "POST", host: str = "host: a\r\n", version: str = "1.1"
) -> bytes:
    rest = "".join(line + "\r\n" for line in ("content-type: tensor/binary", *lines))
    return f"{method} {target} HTTP/{version}\r\n{host}{rest}\r\n".encode("latin-1")


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


CHUNKED = "transfer-encoding: chunked"
REFUSED = {
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 4 + b"\r\n\r\n", 400),
    "unknown method": (head(method="FOO"), 400),
    "HTTP of another age": (head(version="3.0"), 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "no host": (head("content-length: 1024", host="") + LATENT, 400),
    "two hosts": (head("content-length: 1024", "host: b") + LATENT, 400),
    "space in a header's name": (head("content-length : 1024"), 400),
    "length negative": (head("content-length: -1"), 400),
    "length in words": (head("content-length: many"), 400),
    "length with a plus": (head("content-length: +1024"), 400),
    "length in hexadecimal": (head("content-length: 0x400"), 400),
    "two lengths": (head("content-length: 1024", "content-length: 5"), 400),
    "length beyond 64 bits": (head(f"content-length: {10**30}"), 400),
    "length and chunks": (head("content-length: 1024", CHUNKED) + b"0\r\n\r\n", 400),
    "chunk size in words": (head(CHUNKED) + b"zz\r\n", 400),
    "chunk size negative": (head(CHUNKED) + b"-1\r\n", 400),
    "chunk size beyond 64 bits": (head(CHUNKED) + b"f" * 17 + b"\r\n", 400),
    "chunk without its end": (head(CHUNKED) + b"4\r\nAAAAXX", 400),
    "null byte in a header": (head("x-a: b\0c"), 400),
    "bare line feed in a header": (head("x-a: b\nx-c d\r\n"), 400),
    "broken percent escape": (head("content-length: 0", target=TARGET + "&plan=%zz"), 400),
    "path of another site's form": (head("content-length: 0", target="*"), 404),
    "many headers": (head(*(f"x-{i}: a" for i in range(200))), 431),
    "20,000 headers": (head(*(f"x-{i}: a" for i in range(20_000))), 431),
    "one long header": (head("x-a: " + "a" * 40_000), 431),
    "a megabyte of one header": (head("x-a: " + "a" * 2**20), 431),
    "a header without an end": (head()[:-2] + b"x-a: " + b"a" * 2**20, 431),
    "a long query": (head("content-length: 0", target=TARGET + "&plan=" + "a" * 9000), 414),
    "a megabyte of path": (head(target="/" + "a" * 2**20), 431),
    "over the limit": (head(f"content-length: {2 * 2**30}", target="/sd/encode"), 413),
    "over every limit": (head("content-length: 10737418240", "expect: 100-continue", target="/sd/encode"), 413),
    "a length that is not the shape's": (head("content-length: 1025", "expect: 100-continue"), 400),
    "more chunks than the shape has": (head(CHUNKED) + chunked(*[bytes(1000)] * 2), 400),
    "fewer chunks than the shape has": (head(CHUNKED) + chunked(LATENT[:-1]) + b"0\r\n\r\n", 400),
}


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(raw: Any, data: bytes, status: int) -> None:
    """What is not a good HTTP request is refused at once, as JSON, without asking for a body that will not be read."""
    asked = time.monotonic()
    answer = raw.exchange(data)
    assert answer.statuses == [status], answer.body
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert found["error"]
    assert found["request_id"] == answer.headers["x-request-id"]
    assert time.monotonic() - asked < 5


TAKEN = {
    "one chunk": head(CHUNKED) + chunked(LATENT) + b"0\r\n\r\n",
    "a chunk for each byte": head(CHUNKED) + chunked(*(LATENT[i : i + 1] for i in range(1024))) + b"0\r\n\r\n",
    "trailers": head(CHUNKED) + chunked(LATENT) + b"0\r\nx-checksum: 1\r\n\r\n",
    "HTTP/1.0": head("content-length: 1024", version="1.0", host="") + LATENT,
    "the whole URL": head("content-length: 1024", target="http://a" + TARGET) + LATENT,
    "a host that looks like a path": head("content-length: 1024", host="host: a/health?x\r\n") + LATENT,
    "a range": head("content-length: 1024", "range: bytes=0-1,2-3,4-5") + LATENT,
}


@pytest.mark.parametrize("data", TAKEN.values(), ids=TAKEN.keys())
def test_taken(raw: Any, expected: bytes, data: bytes) -> None:
    """Every lawful way to send a latent gives its pixels."""
    answer = raw.exchange(data)
    assert (answer.status, answer.body) == (200, expected)


def test_expect_continue(raw: Any, expected: bytes) -> None:
    """A client that waits for leave gets it when its head is good, and then its answer."""
    with raw.connect() as connection:
        connection.sendall(head("content-length: 1024", "expect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(LATENT)
        answer = raw.read(connection)
    assert (answer.status, answer.body) == (200, expected)


def test_a_connection_survives_a_refusal(raw: Any, expected: bytes) -> None:
    """After a request whose body was refused unread, the same connection serves the next request."""
    with raw.connect() as connection:
        connection.sendall(head("content-length: 1025") + LATENT + b"x")
        assert raw.read(connection).status == 400
        connection.sendall(head("content-length: 1024") + LATENT)
        answer = raw.read(connection)
    assert (answer.status, answer.body) == (200, expected)


def test_pipelined_requests(raw: Any, expected: bytes) -> None:
    """Requests that arrive in one packet are answered in their order."""
    one = head("content-length: 1024") + LATENT
    bad = head("content-length: 1025") + LATENT + b"x"
    with raw.connect() as connection:
        connection.sendall(one + bad + one + head("content-length: 0", "connection: close", target="/nobody"))
        with contextlib.suppress(ConnectionResetError):
            data = b"".join(iter(lambda: connection.recv(65536), b""))
    answers = data.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"400", b"200", b"404"]
    assert answers[0].endswith(expected)
    assert answers[2].endswith(expected)


@pytest.mark.parametrize("sent", ["nothing", "half a head", "half a body", "a chunk's start", "a request"])
@pytest.mark.parametrize("way", ["closed", "reset"])
def test_a_client_that_goes_away(live: Any, raw: Any, sent: str, way: str) -> None:
    """A client that goes away at any moment leaves the server as it was."""
    data = {
        "nothing": b"",
        "half a head": head("content-length: 1024")[:40],
        "half a body": head("content-length: 1024") + LATENT[:500],
        "a chunk's start": head(CHUNKED) + b"400\r\n" + LATENT[:500],
        "a request": head("content-length: 1024") + LATENT,
    }[sent]
    descriptors = Path(f"/proc/{live.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(10):
        connection = raw.connect()
        connection.sendall(data)
        if way == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    deadline = time.monotonic() + 5
    while len(list(descriptors.iterdir())) > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(list(descriptors.iterdir())) <= before


def test_the_body_is_not_echoed(raw: Any) -> None:
    """No refusal repeats a byte of the body."""
    secret = b"a-latent-nobody-else-may-see"
    for data in (
        head(f"content-length: {len(secret)}") + secret,
        head(CHUNKED) + secret,
        head(CHUNKED) + chunked(secret) + b"zz\r\n",
        head(f"content-length: {len(secret)}", target="/sd/encode") + secret,
        head(f"content-length: {len(secret)}").replace(b"tensor/binary", b"application/json") + secret,
    ):
        answer = raw.exchange(data)
        assert answer.status in (400, 415)
        assert json.loads(answer.body)["error"]
        assert secret not in answer.body
