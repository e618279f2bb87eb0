"""A client that costs next to nothing: one socket, kept alive, the request's bytes made once."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

CHUNK = 1 << 20


class Caller:
    """Sends one request again and again; *raises* RuntimeError for any answer but the expected one."""

    def __init__(self, port: int, request: bytes, reply_bytes: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request, self._reply_bytes = request, reply_bytes
        self._buffer = bytearray(CHUNK)

    def call(self) -> float:
        """Seconds from the first byte sent to the last byte received."""
        started = time.perf_counter()
        self._socket.sendall(self._request)
        head = b""
        while b"\r\n\r\n" not in head:
            head += self._receive()
        head, _, body = head.partition(b"\r\n\r\n")
        left = self._reply_bytes - len(body)
        while left > 0:
            left -= len(self._receive())
        seconds = time.perf_counter() - started
        if not head.startswith(b"HTTP/1.1 200") or f"content-length: {self._reply_bytes}" not in head.decode().lower():
            raise RuntimeError(f"the server answered {head[:300]!r} {body[:300]!r}")
        return seconds

    def _receive(self) -> memoryview:
        count = self._socket.recv_into(self._buffer)
        if not count:
            raise RuntimeError("the server hung up")
        return memoryview(self._buffer)[:count]

    def close(self) -> None:
        self._socket.close()


def raw_request(target: str, body: bytes) -> bytes:
    """A tensor as it is."""
    return _post(target, "tensor/binary", body)


def form_request(target: str, body: bytes) -> bytes:
    """A tensor as a file in a form."""
    edge = "e-d-g-e"
    head = f'--{edge}\r\ncontent-disposition: form-data; name="latent"; filename="latent"\r\n\r\n'
    return _post(target, f"multipart/form-data; boundary={edge}", head.encode() + body + f"\r\n--{edge}--\r\n".encode())


def _post(target: str, media: str, body: bytes) -> bytes:
    lines = (f"POST {target} HTTP/1.1", "host: bench", f"content-type: {media}", "accept: tensor/binary")
    return "\r\n".join((*lines, f"content-length: {len(body)}", "", "")).encode() + body


def latencies(port: int, request: bytes, reply_bytes: int, *, warm: int, calls: int) -> list[float]:
    """Seconds of each call by one client."""
    caller = Caller(port, request, reply_bytes)
    for _ in range(warm):
        caller.call()
    found = [caller.call() for _ in range(calls)]
    caller.close()
    return found


def throughput(port: int, request: bytes, reply_bytes: int, *, clients: int, calls: int) -> float:
    """Requests per second with as many clients as `clients`, each in a thread."""
    callers = [Caller(port, request, reply_bytes) for _ in range(clients)]
    for caller in callers:
        caller.call()

    def work(caller: Caller) -> None:
        for _ in range(calls):
            caller.call()

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, callers))
    seconds = time.perf_counter() - started
    for caller in callers:
        caller.close()
    return clients * calls / seconds
