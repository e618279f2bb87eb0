"""Bytes that are no good request, sent as they are: framing, sizes, and clients that stall or go away."""

import base64
import contextlib
import hashlib
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
END = b"0\r\n\r\n"


def digest(body: bytes, name: str = "sha-256") -> str:
    found = hashlib.new(name.replace("-", ""), body).digest()
    return f"{name}=:{base64.b64encode(found).decode()}:"


REFUSED = {
    "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 4 + b"\r\n\r\n", 400),
    "unknown method": (head(method="FOO"), 501),
    "a method in small letters": (head(method="post"), 400),
    "a proxy's method": (b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n", 405),
    "HTTP of another age": (head(version="3.0"), 505),
    "HTTP of the first age": (b"GET /\r\n", 400),
    "HTTP of the first age by name": (head(version="0.9"), 505),
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
    "a long chunk extension": (head(CHUNKED) + b"400;" + b"a" * 100_000 + b"\r\n" + LATENT + END, 400),
    "a size of many zeros": (head(CHUNKED) + b"0" * 100_000 + chunked(LATENT) + END, 400),
    "many trailers": (head(CHUNKED) + chunked(LATENT) + b"0\r\n" + b"x-a: b\r\n" * 20_000 + b"\r\n", 400),
    "a long trailer": (head(CHUNKED) + chunked(LATENT) + b"0\r\nx-a: " + b"b" * 2**20 + b"\r\n\r\n", 400),
    "100,000 chunks": (head(CHUNKED, target="/sd/encode") + b"1\r\na\r\n" * 100_000 + END, 400),
    "extensions of many chunks": (
        head(CHUNKED, target="/sd/encode") + (b"1;" + b"a" * 99 + b"\r\na\r\n") * 9999 + END,
        400,
    ),
    "chunks in HTTP/1.0": (head(CHUNKED, version="1.0") + chunked(LATENT) + END, 400),
    "chunks of gzip": (head("transfer-encoding: gzip, chunked") + chunked(LATENT) + END, 400),
    "two transfer codings": (head(CHUNKED, "transfer-encoding: gzip") + chunked(LATENT) + END, 400),
    "a transfer coding without chunks": (head("transfer-encoding: identity"), 400),
    "equal lengths": (head("content-length: 1024", "content-length: 1024") + LATENT, 400),
    "a list of lengths": (head("content-length: 1024, 1024") + LATENT, 400),
    "a folded header": (head("x-a: b", " c", "content-length: 1024") + LATENT, 400),
    "bare line feeds": (head("content-length: 1024").replace(b"\r\n", b"\n") + LATENT, 400),
    "a digest that is another body's": (head("content-length: 1024", f"content-digest: {digest(b'x')}") + LATENT, 400),
    "a digest that is none": (head("content-length: 1024", "content-digest: sha-256=x") + LATENT, 400),
    "a digest that is no base64": (head("content-length: 1024", "content-digest: sha-256=:x:") + LATENT, 400),
    "null byte in a header": (head("x-a: b\0c"), 400),
    "bare line feed in a header": (head("x-a: b\nx-c d\r\n"), 400),
    "broken percent escape": (head("content-length: 0", target=TARGET + "&plan=%zz"), 400),
    "path of another site's form": (head("content-length: 0", target="*"), 404),
    "many headers": (head(*(f"x-{i}: a" for i in range(200))), 431),
    "many headers without an end": (head(*(f"x-{i}: a" for i in range(200)))[:-2], 431),
    "20,000 headers": (head(*(f"x-{i}: a" for i in range(20_000))), 431),
    "one long header": (head("x-a: " + "a" * 40_000), 431),
    "a megabyte of one header": (head("x-a: " + "a" * 2**20), 431),
    "a header without an end": (head()[:-2] + b"x-a: " + b"a" * 2**20, 431),
    "a long query": (head("content-length: 0", target=TARGET + "&plan=" + "a" * 9000), 414),
    "a megabyte of path": (head(target="/" + "a" * 2**20), 414),
    "a hundred kilobytes of query": (head(target=TARGET + "&plan=" + "a" * 100_000), 414),
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
    assert answer.statuses == [status], (answer.statuses, answer.body)
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert found["error"]
    assert found["request_id"] == answer.headers["x-request-id"]
    assert time.monotonic() - asked < 5


# Taken and not refused, though some servers do: a header that we do not read need not be text, and an offer of another
# protocol may be declined by answering in this one (RFC 9110, 7.8).
TAKEN = {
    "one chunk": head(CHUNKED) + chunked(LATENT) + b"0\r\n\r\n",
    "a chunk for each byte": head(CHUNKED) + chunked(*(LATENT[i : i + 1] for i in range(1024))) + b"0\r\n\r\n",
    "trailers": head(CHUNKED) + chunked(LATENT) + b"0\r\nx-checksum: 1\r\n\r\n",
    "trailers that would be refused as headers": head(CHUNKED)
    + chunked(LATENT)
    + b"0\r\ncontent-digest: x\r\norigin: http://b\r\n\r\n",
    "HTTP/1.0": head("content-length: 1024", version="1.0", host="") + LATENT,
    "the whole URL": head("content-length: 1024", target="http://a" + TARGET) + LATENT,
    "a host that looks like a path": head("content-length: 1024", host="host: a/health?x\r\n") + LATENT,
    "an upgrade to HTTP/2": head("content-length: 1024", "upgrade: h2c", "connection: upgrade, http2-settings")
    + LATENT,
    "an upgrade to HTTP/2 in chunks": head(CHUNKED, "upgrade: h2c", "connection: upgrade") + chunked(LATENT) + END,
    "an upgrade to WebSocket": head("content-length: 1024", "upgrade: websocket", "connection: upgrade") + LATENT,
    "its digests": head("content-length: 1024", f"content-digest: {digest(LATENT)}, {digest(LATENT, 'sha-512')}")
    + LATENT,
    "a digest of a kind unknown here": head("content-length: 1024", "content-digest: md5=:AAAA:") + LATENT,
    "a header that is no UTF-8": head("content-length: 1024", "x-a: \xff\xfe") + LATENT,
    "chunk extensions": head(CHUNKED) + b"400;a=b\r\n" + LATENT + b"\r\n" + END,
    "garbage after it": head("content-length: 1024") + LATENT + b"GARBAGE\r\n\r\n",
    "a request that is refused after it": head("content-length: 1024") + LATENT + head(*["x-a: b"] * 200),
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


def test_a_wish_to_upgrade_does_not_eat_what_follows(raw: Any, expected: bytes) -> None:
    """Requests that ask for another protocol are served in HTTP/1.1, however many come in one packet."""
    wish = head("content-length: 1024", "upgrade: h2c", "connection: upgrade") + LATENT
    get = b"GET /live HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"
    last = b"GET /live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    with raw.connect() as connection:
        connection.sendall(wish + get * 300 + wish + last)
        data = b"".join(iter(lambda: connection.recv(65536), b""))
    assert data.count(b"HTTP/1.1 200 ") == 303
    assert data.count(expected) == 2


def test_a_wish_to_upgrade_in_pieces(raw: Any, expected: bytes) -> None:
    """It does not matter how the network cuts such a request."""
    wish = head("content-length: 1024", "upgrade: h2c", "connection: upgrade") + LATENT
    with raw.connect() as connection:
        for start in range(0, len(wish), 50):
            connection.sendall(wish[start : start + 50])
            time.sleep(0.002)
        answer = raw.read(connection)
    assert (answer.status, answer.body) == (200, expected)


def test_a_wish_to_upgrade_behind_a_body(raw: Any, expected: bytes) -> None:
    """A request that asks for another protocol is served, also if it comes in one packet with the body before it."""
    with raw.connect() as connection:
        connection.sendall(head("content-length: 1024", "expect: 100-continue"))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        get = b"GET /live HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"
        connection.sendall(LATENT + get + b"GET /live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        data = b"".join(iter(lambda: connection.recv(65536), b""))
    assert data.count(b"HTTP/1.1 200 ") == 3
    assert data.count(expected) == 1


@pytest.mark.parametrize("sent", ["nothing", "half a head", "half a body", "a chunk's start", "a request"])
@pytest.mark.parametrize("way", ["closed", "reset"])
def test_a_client_that_goes_away(live: Any, raw: Any, good: Any, sent: str, way: str) -> None:
    """A client that goes away at any moment leaves the server as it was."""
    data = {
        "nothing": b"",
        "half a head": head("content-length: 1024")[:40],
        "half a body": head("content-length: 1024") + LATENT[:500],
        "a chunk's start": head(CHUNKED) + b"400\r\n" + LATENT[:500],
        "a request": head("content-length: 1024") + LATENT,
    }[sent]
    descriptors = Path(f"/proc/{live.process.pid}/fd")
    good()  # the first job opens the shared memory that all later ones pass through
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
