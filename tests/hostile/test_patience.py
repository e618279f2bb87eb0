"""What costs the server time, memory or secrets: stalled clients, gone clients, floods, and the log."""

import base64
import contextlib
import http.client
import io
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from PIL import Image

SLEEP = 8.0  # the first value of a latent that makes the VAE take a second
TARGET = "/?shape=1,3,8,8&dtype=float32&output_type=pt"
TOLERATED = "/encode?posterior=mode"
SECRET = b"a-latent-nobody-else-may-see"
HEAD = f"POST {TARGET} HTTP/1.1\r\nhost: a\r\ncontent-type: tensor/binary\r\ncontent-length: 768\r\n\r\n".encode()


def latent(first: float = 1.0) -> bytes:
    values = np.linspace(-1, 1, 192, dtype=np.float32)
    values[0] = first
    return values.tobytes()


def test_headers_that_do_not_end(impatient: Any) -> None:
    """Headers that arrive too slowly are answered with 408 and the connection is closed; other clients are served."""
    with impatient.raw.connect() as connection:
        deadline, asked = time.monotonic() + 8, time.monotonic()
        connection.sendall(b"GET /live HTTP/1.1\r\n")
        connection.settimeout(0.1)
        data = b""
        while time.monotonic() < deadline and not data:
            connection.sendall(b"x-a: b\r\n")
            assert impatient.server.decode().status_code == 200
            try:
                data = connection.recv(4096)
            except TimeoutError:
                continue
        assert data.startswith(b"HTTP/1.1 408 ")
        assert b"request_timeout" in data
        assert 0.9 < time.monotonic() - asked < 4
        assert impatient.raw.closed(connection, within=1)


def test_a_connection_that_says_nothing(impatient: Any) -> None:
    """A connection on which nothing comes is closed."""
    with impatient.raw.connect() as connection:
        assert impatient.raw.closed(connection, within=4)


def test_a_connection_that_dribbles_between_requests(impatient: Any) -> None:
    """Empty lines between requests do not keep a connection open."""
    with impatient.raw.connect() as connection:
        connection.sendall(b"GET /live HTTP/1.1\r\nhost: a\r\n\r\n")
        assert impatient.raw.read(connection).status == 200
        assert impatient.raw.cut_off(connection, b"\r\n", within=6)


def unsent_bytes(server: Any, connection: socket.socket) -> int | None:
    """What the system holds for the other end of a connection; None if the server has closed that end."""
    ends = [f":{port:04X}" for port in (urlsplit(server.url).port, connection.getsockname()[1])]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, queues, *_ = line.split()
        if (local[-5:], remote[-5:], state) == (*ends, "01"):
            return int(queues.partition(":")[0], 16)
    return None


def grows(server: Any, connection: socket.socket, before: int) -> bool:
    deadline = time.monotonic() + 0.5
    while (unsent_bytes(server, connection) or 0) <= before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_rest_of_a_reply_that_is_not_read(start: Any) -> None:
    """A client that leaves too little of a reply unread for the server to wait for it is closed all the same."""
    with start("copy", head_seconds=1, reply_seconds=1) as server:
        for last in (b"", b"GET /live HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"):
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.connect(("127.0.0.1", urlsplit(server.url).port))
                full = -1
                while grows(server, connection, full):  # until the system takes no more and the server holds the rest
                    full = unsent_bytes(server, connection) or 0
                    connection.sendall(b"GET /docs HTTP/1.1\r\nhost: a\r\n\r\n")
                connection.sendall(last)
                deadline = time.monotonic() + 30
                while unsent_bytes(server, connection) is not None:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)


def test_a_body_that_does_not_end(impatient: Any) -> None:
    """A body that arrives too slowly is answered with 408 and the connection is closed."""
    with impatient.raw.connect() as connection:
        connection.sendall(HEAD + b"abc")
        answer = impatient.raw.read(connection)
        assert (answer.status, answer.json()["error_type"]) == (408, "request_timeout")
        assert "within 1 s" in answer.json()["error"]
        assert answer.headers["connection"] == "close"
        assert impatient.raw.closed(connection, within=1)


def test_a_refused_body_is_not_read_for_ever(impatient: Any) -> None:
    """A body that was refused unread is read away for a while, and no longer."""
    with impatient.raw.connect() as connection:
        connection.sendall(HEAD.replace(b"768", b"67000000", 1))
        assert impatient.raw.read(connection).status == 400
        assert impatient.raw.cut_off(connection, b"a", within=6)


@pytest.mark.alone
def test_many_stalled_clients(impatient: Any) -> None:
    """A hundred connections that stall do not slow down the one that works."""
    stalled = [impatient.raw.connect() for _ in range(100)]
    try:
        for connection in stalled:
            connection.sendall(HEAD[:30])
        asked = time.monotonic()
        assert impatient.server.decode().status_code == 200
        assert time.monotonic() - asked < 1
    finally:
        for connection in stalled:
            connection.close()


def test_a_gone_client_costs_no_work(patient: Any) -> None:
    """Requests whose clients have gone while they waited are not decoded, and the one that runs disturbs nobody."""
    connections = [patient.raw.connect() for _ in range(6)]
    for connection in connections:
        connection.sendall(HEAD + latent(SLEEP))
    time.sleep(0.5)
    for connection in connections:
        connection.close()
    asked = time.monotonic()
    reply = patient.server.decode(0.5)
    assert np.frombuffer(reply.content, np.float32)[0] == 0.5
    assert time.monotonic() - asked < 3


def test_as_many_as_may_wait(start: Any) -> None:
    """Above the number that may wait requests are refused at once with 503 and Retry-After; the others are served.

    Where there are no keys one address may have them all: a proxy makes one of everybody.
    """
    with start("copy", max_waiting=3) as server:
        replies: list[tuple[requests.Response, float]] = []

        def ask() -> None:
            asked = time.monotonic()
            replies.append((server.decode(SLEEP), time.monotonic() - asked))

        threads = [threading.Thread(target=ask) for _ in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    refused = [(reply, seconds) for reply, seconds in replies if reply.status_code == 503]
    assert sorted(reply.status_code for reply, _ in replies) == [200] * 3 + [503] * 6
    assert all(reply.json()["error_type"] == "overloaded" for reply, _ in refused)
    assert all(int(reply.headers["retry-after"]) >= 1 for reply, _ in refused)
    assert max(seconds for _, seconds in refused) < 1.5


def jpeg_with_broken_exif() -> bytes:
    """A good picture, about whose orientation the imaging library has something to say."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 3)
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "JPEG", exif=exif)
    return out.getvalue()


HOSTILE = [
    (TARGET, latent()[:-1], {}),
    (TARGET, SECRET, {"transfer-encoding": "chunked"}),
    (TARGET, b'{"inputs": ' + b"[" * 200_000, {"content-type": "application/json"}),
    (TARGET, b'{"inputs": "' + base64.b64encode(SECRET) + b'"}', {"content-type": "application/json"}),
    (TARGET, b'{"inputs": "' + base64.b64encode(SECRET) * 5000 + b"!", {"content-type": "application/json"}),
    (TARGET, latent(float("nan")), {}),
    (TARGET + "&" + "a" * 9000, SECRET, {}),
    (f"/?shape=1,3,{2**40},8&dtype=float32", SECRET, {}),
    ("/encode", SECRET, {}),
    ("/encode", b"\x89PNG\r\n\x1a\n" + SECRET * 10_000, {}),
    ("/encode", b"\xff\xd8\xff" + SECRET * 10_000, {}),
    (TOLERATED, jpeg_with_broken_exif(), {}),
    ("/encode?shape=1,3,8,8&dtype=uint8", SECRET, {}),
    ("/nobody", SECRET * 100, {}),
    ("/", b"", {"accept": "a/b," * 5000}),
]


def attack(port: int, times: int) -> None:
    """Each of the hostile requests, in turn, over connections that are used again."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for number in range(times):
        path, body, headers = HOSTILE[number % len(HOSTILE)]
        fields = {"content-type": "tensor/binary" if "encode" not in path else "", **headers}
        data: Any = iter([body]) if "transfer-encoding" in headers else body
        connection.request("POST", path, data, fields, encode_chunked=True)
        reply = connection.getresponse()
        reply.read()
        assert reply.status == 200 if path == TOLERATED else 400 <= reply.status < 500
    connection.close()


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_flood_leaves_nothing_behind(patient: Any) -> None:
    """Five hundred hostile requests cost no memory, no file descriptor and no replica, and leave no word in the log."""
    server = patient.server
    attack(server.port, 200)
    replicas, before = server.replicas(), resident_bytes(server.process.pid)
    files = open_files(server.process.pid)
    attack(server.port, 500)
    assert server.decode().status_code == 200
    assert resident_bytes(server.process.pid) - before < 8 * 2**20
    deadline = time.monotonic() + 5
    while open_files(server.process.pid) > files and time.monotonic() < deadline:
        time.sleep(0.05)  # the connections that are just being closed
    assert open_files(server.process.pid) <= files
    assert server.replicas() == replicas
    log = server.log.read_bytes()
    assert SECRET not in log
    assert base64.b64encode(SECRET)[:20] not in log
    assert log == b""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_announced_body_costs_no_memory(patient: Any) -> None:
    """Three hundred connections that announce 64 MiB and send one byte cost less than 40 MB in all."""
    server = patient.server
    announced = f"POST {TOLERATED} HTTP/1.1\r\nhost: a\r\ncontent-length: {64 * 2**20}\r\nexpect: 100-continue\r\n\r\n"
    assert server.decode().status_code == 200
    before = resident_bytes(server.process.pid)
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(patient.raw.connect()) for _ in range(300)]
        for connection in connections:
            connection.sendall(announced.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")  # now the body is read
            connection.sendall(b"x")
        assert server.decode().status_code == 200
        assert resident_bytes(server.process.pid) - before < 40e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_body_of_many_values_costs_no_memory(patient: Any) -> None:
    """A JSON body that asks for millions of objects is refused before they are made."""
    server = patient.server
    body = b'{"inputs": [' + b"{}," * 10_000_000 + b"{}]}"
    before = peak_bytes(server.process.pid)
    reply = requests.post(server.url + TARGET, body, headers={"content-type": "application/json"}, timeout=60)
    assert (reply.status_code, "more than 1000 values" in reply.text) == (400, True)
    assert peak_bytes(server.process.pid) - before < 8 * len(body)


def peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def test_the_limit_is_checked_before_the_body(patient: Any) -> None:
    """Two gigabytes that are announced are refused before a byte of them is read or asked for."""
    with patient.raw.connect() as connection:
        connection.sendall(
            b"POST /encode HTTP/1.1\r\nhost: a\r\ncontent-length: 2147483648\r\nexpect: 100-continue\r\n\r\n"
        )
        answer = patient.raw.read(connection)
    assert answer.statuses == [413]
    assert answer.json()["detail"] == {"limit": 64 * 2**20}


def test_an_endless_body_is_cut_off(patient: Any) -> None:
    """Chunks without an announced length are refused at the limit, not when memory ends."""
    piece = b"100000\r\n" + bytes(2**20) + b"\r\n"
    with patient.raw.connect() as connection:
        connection.sendall(b"POST /encode HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(66):
            connection.sendall(piece)
        answer = patient.raw.read(connection)
    assert (answer.status, answer.json()["error_type"]) == (413, "too_large")


def test_bodies_share_the_room(start: Any) -> None:
    """While bodies that arrive take the room, another one is told to come back; a single one always may arrive."""
    body = bytes(4 * 3 * 64 * 64)
    path = "/?shape=1,3,64,64&dtype=float32&output_type=pt"
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: tensor/binary\r\ncontent-length: {len(body)}\r\n\r\n"
    with start("copy", max_arriving_bytes=40_000) as server:

        def post() -> requests.Response:
            return requests.post(server.url + path, body, headers={"content-type": "tensor/binary"}, timeout=60)

        assert post().status_code == 200  # it is larger than the room, and alone
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow:
            slow.sendall(head.encode() + body[:-1])
            server.wait_until(lambda: post().status_code == 503, seconds=60)
            refused = post()
            assert (refused.json()["error_type"], refused.headers["retry-after"]) == ("overloaded", "1")
            slow.sendall(body[-1:])
            assert slow.recv(100).startswith(b"HTTP/1.1 200 ")
        assert post().status_code == 200


def test_what_is_no_tensor_is_shorter(start: Any) -> None:
    """JSON and pictures, whose size is not known before they are read, are bounded by the pixels that may be sent."""
    with start("copy", max_pixels=100) as server:
        for headers in ({"content-type": "application/json"}, {"content-type": "image/png"}):
            reply = requests.post(f"{server.url}/encode", bytes(1001), headers=headers, timeout=60)
            assert (reply.status_code, reply.json()["detail"]) == (413, {"limit": 1000})
