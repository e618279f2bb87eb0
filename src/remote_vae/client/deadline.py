"""A sync httpx2 transport that keeps a deadline over a whole exchange.

httpx2's time-outs start anew with every read, so a server that sends a byte now and then could hold a call for ever.
Here each single read and write gets no more than what is left. Async needs none of this: a task can be cancelled.
"""

import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import httpcore2
import httpx2

from remote_vae.client.exchange import Deadline

WRITE_BYTES: Final = 256 * 1024  # at most this much is handed over before the clock is read again

_current: ContextVar[Deadline | None] = ContextVar("remote_vae_deadline", default=None)


@contextmanager
def enforced(deadline: Deadline) -> Iterator[None]:
    """Within the block, connections of a DeadlineTransport keep the deadline."""
    token = _current.set(deadline)
    try:
        yield
    finally:
        _current.reset(token)


class DeadlineTransport(httpx2.HTTPTransport):
    """httpx2's own transport over connections that know `enforced`."""

    def __init__(self, *, verify: ssl.SSLContext | bool = True, proxy: str | None = None) -> None:
        super().__init__(verify=verify, trust_env=False, proxy=proxy)
        # The pool takes a backend only when it is built, and httpx2 builds it without a way to pass one.
        self._pool._network_backend = _Backend()


class _Backend(httpcore2.SyncBackend):
    """Opens connections that keep the deadline."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        left = _left(timeout, httpcore2.ConnectTimeout)
        return _Stream(super().connect_tcp(host, port, left, local_address, socket_options))


class _Stream(httpcore2.NetworkStream):
    """A connection whose every operation gets what is left of the deadline."""

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), WRITE_BYTES):
            piece = buffer[start : start + WRITE_BYTES]
            self._stream.write(piece, _left(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = _left(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(timeout: float | None, error: type[httpcore2.TimeoutException]) -> float | None:
    deadline = _current.get()
    if deadline is None:
        return timeout
    left = deadline.left
    if left <= 0:
        raise error("the deadline has passed")
    return left if timeout is None else min(timeout, left)
