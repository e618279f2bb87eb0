"""The way to the network: one HTTP request and its reply, over httpx2, blocking or asynchronous.

The client is written once, as coroutines over a `Network`. Over a `BlockingNetwork` these coroutines never suspend,
so `run` finishes them in the caller's thread without an event loop. A thread with an event loop behind the blocking
client was measured: twice the time for a call, and twice the time for a large reply.

A proxy is an argument, otherwise that of the environment, as other programs read it; a server on this machine is asked
without one. SSL_CERT_FILE, SSL_CERT_DIR and the argument `ca_file` add to the certificates that are trusted, as a
private authority's must be. A netrc is never read, and redirects are never followed.
"""

import asyncio
import os
import ssl
import time
import urllib.request
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from importlib.util import find_spec
from typing import Any, Final, Generic, TypeAlias, TypeVar
from urllib.parse import urlsplit

import httpx2

from remote_vae.client.deadline import DeadlineTransport
from remote_vae.client.exchange import ID_HEADERS, POLL_SECONDS, Deadline, HttpRequest, Poll, Reader, nothing
from remote_vae.errors import ConfigurationError
from remote_vae.python310 import timeout

T = TypeVar("T")
PathText: TypeAlias = str | os.PathLike[str]

TRUSTED: Final = {"SSL_CERT_FILE": "cafile", "SSL_CERT_DIR": "capath"}
AGENT: Final = {"user-agent": "remote-vae"}
# A call must not wait for a connection that another call is watched over.
LIMITS: Final = httpx2.Limits(max_connections=None, max_keepalive_connections=20)


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends, because its network blocks.

    No event loop takes part, so it also works where one is running, as in a notebook.
    """
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("a blocking call was suspended")


H = TypeVar("H", httpx2.Client, httpx2.AsyncClient)


class Way(Generic[H]):
    """What both networks share: an injected client, or the proxy and the certificates for clients of this module."""

    answered = False  # a server has, so its address is right

    def __init__(
        self, url: str, *, http: H | None = None, proxy: str | None = None, ca_file: PathText | None = None
    ) -> None:
        if http is not None and (proxy is not None or ca_file is not None):
            raise ConfigurationError("http excludes proxy and ca_file; give them to the injected client")
        self.injected: H | None = http
        self._used_in: int | None = None  # the process
        if http is None:
            self._proxy = _read_proxy(_proxy_of_environment(url) if proxy is None else proxy)
            self._verify = _verify(url, self._proxy, ca_file)
        self._begin()

    def _begin(self) -> None:
        """Prepares connections that are not injected."""
        raise NotImplementedError

    def _given(self) -> H | None:
        """The injected client; *raises* ConfigurationError if another process has used its connections."""
        if self.injected is not None:
            if self._used_in not in (None, os.getpid()):
                raise ConfigurationError(
                    "the injected http client has connections of the process that this one was forked from; make "
                    "another client in each process, or leave http out"
                )
            self._used_in = os.getpid()
        return self.injected


class BlockingNetwork(Way[httpx2.Client]):
    """Blocks the calling thread; threads may share it, and a forked process opens other connections."""

    def _begin(self) -> None:
        if self.injected is None:
            self._connect()

    def _connect(self) -> None:
        transport = DeadlineTransport(verify=self._verify, proxy=self._proxy)
        self._own, self._pid = httpx2.Client(transport=transport, trust_env=False, headers=AGENT), os.getpid()

    def _http(self) -> httpx2.Client:
        given = self._given()
        if given is not None:
            return given
        if self._pid != os.getpid():
            # The parent uses the inherited connections too: each process would read the other's replies.
            self._connect()
        return self._own

    async def exchange(self, request: HttpRequest, reader: Reader) -> None:
        """Fills the reader, until its deadline; *raises* ClientError, httpx2.HTTPError, TimeoutError."""
        async with aclosing(self.chunks(request, reader)) as chunks:
            async for chunk in chunks:
                reader.take(chunk)

    async def chunks(self, request: HttpRequest, reader: Reader) -> AsyncGenerator[bytes, None]:
        """The reply's body as it comes; the reader gets the head. If it is closed before its end, it hangs up."""
        http = self._http()
        with http.stream(**_arguments(http, request, reader)) as response:
            reader.begin(response)
            for chunk in response.iter_bytes():
                yield chunk

    async def pull(self, chunks: AsyncGenerator[bytes, None], deadline: Deadline) -> bytes:
        """The next chunk, or nothing at the end; *raises* what `exchange` raises."""
        return await anext(chunks, b"")

    async def sleep(self, seconds: float, poll: Poll = nothing) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            poll()
            time.sleep(min(left, POLL_SECONDS))

    async def close(self) -> None:
        """Closes the connections, except those of an injected client."""
        if self.injected is None and self._pid == os.getpid():
            self._own.close()


class AsyncNetwork(Way[httpx2.AsyncClient]):
    """Needs asyncio; each event loop of each process has its own connections, which end with the loop."""

    def _begin(self) -> None:
        self._own: dict[tuple[int, asyncio.AbstractEventLoop], tuple[httpx2.AsyncClient, AsyncGenerator[None]]] = {}

    async def _http(self) -> httpx2.AsyncClient:
        given = self._given()
        if given is not None:
            return given
        key = os.getpid(), asyncio.get_running_loop()
        if key not in self._own:
            self._own = {each: own for each, own in self._own.items() if not each[1].is_closed()}
            how: Any = {"verify": self._verify, "proxy": self._proxy, "limits": LIMITS}
            http = httpx2.AsyncClient(trust_env=False, headers=AGENT, **how)
            closing = _close_at_the_end(http)
            await anext(closing)
            self._own[key] = http, closing
        return self._own[key][0]

    async def exchange(self, request: HttpRequest, reader: Reader) -> None:
        async with timeout(reader.deadline.left), aclosing(self.chunks(request, reader)) as chunks:
            async for chunk in chunks:
                reader.take(chunk)

    async def chunks(self, request: HttpRequest, reader: Reader) -> AsyncGenerator[bytes, None]:
        http = await self._http()
        async with (
            http.stream(**_arguments(http, request, reader)) as response,
            aclosing(response.aiter_bytes()) as chunks,
        ):
            reader.begin(response)
            async for chunk in chunks:
                yield chunk

    async def pull(self, chunks: AsyncGenerator[bytes, None], deadline: Deadline) -> bytes:
        async with timeout(deadline.left):
            return await anext(chunks, b"")

    async def sleep(self, seconds: float, poll: Poll = nothing) -> None:
        """A task that waits can be cancelled, so there is no need to poll."""
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """Closes the running loop's connections; those of another loop end with that loop."""
        own = self._own.get((os.getpid(), asyncio.get_running_loop()))
        if own is not None:
            await own[1].aclose()


Network = BlockingNetwork | AsyncNetwork


async def _close_at_the_end(http: httpx2.AsyncClient) -> AsyncGenerator[None]:
    """A generator that closes the client when it is closed: `asyncio.run` does that before its loop ends."""
    try:
        yield
    finally:
        await http.aclose()


def _proxy_of_environment(url: str) -> str | None:
    """HTTP_PROXY, HTTPS_PROXY or ALL_PROXY for the server's address, unless NO_PROXY names it or it is this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host == "localhost" or host.endswith(".localhost") or host.startswith("127.") or host == "::1":
        return None
    if urllib.request.proxy_bypass(parts.netloc):
        return None
    found = urllib.request.getproxies()
    return found.get(parts.scheme) or found.get("all")


def _read_proxy(proxy: str | None) -> httpx2.Proxy | None:
    """*Raises* ConfigurationError; the address is not shown, because it can hold a password."""
    if proxy is None:
        return None
    try:
        found = httpx2.Proxy(proxy if "://" in proxy else f"http://{proxy}")
    except (ValueError, httpx2.InvalidURL) as exc:
        raise ConfigurationError(
            "the proxy is no http, https or socks5 URL; expected one like http://host:3128"
        ) from exc
    if found.url.scheme.startswith("socks") and find_spec("socksio") is None:
        raise ConfigurationError("a socks5 proxy needs a package; run: pip install socksio")
    return found


def _verify(url: str, proxy: httpx2.Proxy | None, ca_file: PathText | None) -> ssl.SSLContext:
    """If no TLS is used, a context that trusts nobody, because reading all certificates takes 20 ms.

    *Raises* ConfigurationError for certificates that cannot be read.
    """
    if url.startswith("http:") and (proxy is None or proxy.url.scheme != "https"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context = httpx2.create_ssl_context(trust_env=False)
    places = [(name, kind, os.environ.get(name)) for name, kind in TRUSTED.items()]
    for name, kind, place in (*places, ("ca_file", "cafile", ca_file)):
        if place:
            try:
                context.load_verify_locations(**{kind: os.fspath(place)})
            except (OSError, ssl.SSLError) as exc:
                raise ConfigurationError(f"{name}={place} holds no certificates that can be read: {exc}") from exc
    return context


def _arguments(http: httpx2.Client | httpx2.AsyncClient, request: HttpRequest, reader: Reader) -> dict[str, Any]:
    return {
        "method": request.method,
        "url": request.url,
        # Identity: what is not compressed cannot unfold to more bytes than the limit.
        "headers": {**request.headers, **_ids(request), "accept-encoding": "identity"},
        "content": request.body or None,
        "timeout": reader.deadline.timeouts(),
        "follow_redirects": False,
        "extensions": {"poll": reader.poll},
        # An injected client's own credential gives way to the request's.
        "auth": None if "authorization" in request.headers else http.auth,
    }


def _ids(request: HttpRequest) -> dict[str, str]:
    return dict.fromkeys(ID_HEADERS, request.request_id) if request.request_id else {}
