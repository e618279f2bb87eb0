"""A blocking httpx2 transport with time-outs for a whole request.

httpx2 gives every single read and write the whole time-out, so a server that sends a byte now and then could hold a
call without end. In this transport all reads of a request together take no longer than its read time-out, and all
writes no longer than its write time-out. While it waits, it calls the request's `poll` now and then, which may end the
request by an exception. Asynchronous code does not need this: a task can be cancelled.
"""

import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpcore2
import httpx2

from remote_vae.client.exchange import POLL_SECONDS, Poll, nothing

WRITE_BYTES: Final = 256 * 1024  # the most that is written before the clock is read again
LIBRARY_ERRORS: Final = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.ProxyError,
    httpcore2.UnsupportedProtocol,
)


class _Moment(float):
    """A moment on the monotonic clock, and what is called now and then until it comes."""

    poll: Poll

    def __new__(cls, at: float, poll: Poll) -> "_Moment":
        found = super().__new__(cls, at)
        found.poll = poll
        return found


class DeadlineTransport(httpx2.BaseTransport):
    """Connections of a client, which its threads share; an idle one is kept for 5 seconds."""

    def __init__(self, *, verify: ssl.SSLContext, proxy: httpx2.Proxy | None = None) -> None:
        self._pool = httpcore2.ConnectionPool(
            verify,
            proxy=None if proxy is None else httpcore2.Proxy(str(proxy.url), auth=proxy.raw_auth),
            max_connections=None,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=_Backend(),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        now, url, poll = time.monotonic(), request.url, request.extensions.get("poll", nothing)
        # The pool passes these numbers to the connections, for which they are moments; see `_left`.
        timeouts = {name: each for name, each in request.extensions["timeout"].items() if name != "pool"}
        moments = {name: _Moment(now + seconds, poll) for name, seconds in timeouts.items()}
        target = httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        with _errors_of_httpx2():
            found = self._pool.handle_request(
                httpcore2.Request(
                    request.method,
                    target,
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions={"timeout": moments},
                )
            )
        return httpx2.Response(found.status, headers=found.headers, stream=_Body(found.stream))

    def close(self) -> None:
        self._pool.close()


class _Body(httpx2.SyncByteStream):
    """The body of a reply, with the errors of httpx2."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        with _errors_of_httpx2():
            yield from self._stream

    def close(self) -> None:
        self._stream.close()


class _Backend(httpcore2.SyncBackend):
    """Opens connections that take time-outs for moments."""

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
    """A connection; each `timeout` is a moment on the monotonic clock."""

    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            left = _polled(timeout, httpcore2.ReadTimeout)
            try:
                return self._stream.read(max_bytes, left and min(left, POLL_SECONDS))
            except httpcore2.ReadTimeout:
                pass  # the next round sees whether the moment has come

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), WRITE_BYTES):
            self._stream.write(buffer[start : start + WRITE_BYTES], _polled(timeout, httpcore2.WriteTimeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = _left(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left))

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(moment: float | None, error: type[httpcore2.TimeoutException]) -> float | None:
    """Seconds until the moment; *raises* `error` if it has passed."""
    if moment is None:  # httpcore2 speaks to SOCKS proxies without time-outs
        return None
    left = moment - time.monotonic()
    if left <= 0:
        raise error("the deadline has passed")
    return left


def _polled(moment: float | None, error: type[httpcore2.TimeoutException]) -> float | None:
    """`_left`, after a poll."""
    if isinstance(moment, _Moment):
        moment.poll()
    return _left(moment, error)


@contextmanager
def _errors_of_httpx2() -> Iterator[None]:
    """httpx2 and httpcore2 have errors of the same names."""
    try:
        yield
    except LIBRARY_ERRORS as exc:
        raise getattr(httpx2, type(exc).__name__)(str(exc)) from exc
