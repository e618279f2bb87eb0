"""What one client does costs the others nothing: replies that it does not read, and the size of its requests."""

import socket
import threading
from typing import Any

import numpy as np
import requests

from .test_patience import SLEEP

LAZY, OTHER = "the-key-that-reads-nothing", "the-key-of-somebody-else"
SIDE = 1024
LATENT = bytes(4 * 3 * SIDE * SIDE)  # the reply has as many bytes, more than the system's buffers take


def path(side: int) -> str:
    return f"/copy/decode?shape=1,3,{side},{side}&dtype=float32&output_type=pt"


def ask(server: Any, side: int, key: str = "", first: float = 0.0, **headers: str) -> requests.Response:
    latent = np.zeros(3 * side * side, np.float32)
    latent[0] = first
    if key:
        headers["authorization"] = f"Bearer {key}"
    headers["content-type"] = "tensor/binary"
    return requests.post(server.url + path(side), latent.tobytes(), headers=headers, timeout=60)


def test_replies_that_one_key_does_not_read(start: Any) -> None:
    """A key that reads none of its replies is refused beyond its share of what may be unsent; another key is served."""
    head = f"POST {path(SIDE)} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {LAZY}\r\ncontent-type: tensor/binary\r\n"
    request = f"{head}content-length: {len(LATENT)}\r\n\r\n".encode() + LATENT
    room = len(LATENT) * 3 // 2
    with start("copy", keys=f"{LAZY} {OTHER}", max_unsent_bytes=room) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(request)  # alone it may be larger than its key's share, but does not count for more
        assert connection.recv(1) == b"H"  # the reply has begun, and is not read any further
        assert ask(server, 8, LAZY).status_code == 429
        for side in (8, SIDE * 4 // 5, 8, SIDE * 4 // 5):
            assert ask(server, side, OTHER).status_code == 200
        assert ask(server, 8, LAZY).status_code == 429


def test_tiny_requests_before_a_large_one(start: Any) -> None:
    """A run of tiny requests does not make a large one look like minutes of work, for which everybody is refused."""
    with start("copy") as server:
        for _ in range(50):
            assert ask(server, 8).status_code == 200
        large = threading.Thread(target=ask, args=(server, 2048, "", SLEEP))
        large.start()
        server.wait_until(lambda: 'remote_vae_accepted_jobs{model="copy"} 1.0' in metrics(server), seconds=60)
        assert ask(server, 8, **{"x-request-timeout-seconds": "30"}).status_code == 200
        large.join()


def metrics(server: Any) -> str:
    return str(requests.get(f"{server.url}/metrics", timeout=60).text)
