"""The way to the network: one HTTP request and its reply, over httpx2, blocking or asynchronous.

The client is written once, as coroutines over a `Network`. Over a `BlockingNetwork` these coroutines never suspend,
so `run` finishes them in the caller's thread without an event loop. A thread with an event loop behind the blocking
client was measured: twice the time for a call, and twice the time for a large reply.

No proxy and no netrc are taken from the environment, so that credentials and latents go only where the caller sends
them: a proxy is an argument. SSL_CERT_FILE and SSL_CERT_DIR add to the certificates that are trusted, as a private
authority's must be. Redirects are never followed.
"""

import asyncio
import os
import ssl
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Final, TypeVar

import httpx2

from remote_vae.client.deadline import DeadlineTransport
from remote_vae.client.exchange import HttpRequest, ReplyReader
from remote_vae.errors import ConfigurationError

T = TypeVar("T")

TRUSTED: Final = {"SSL_CERT_FILE": "cafile", "SSL_CERT_DIR": "capath"}
AGENT: Final = {"user-agent": "remote-vae"}


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


class BlockingNetwork:
    """Blocks the calling thread; threads may share it, and a forked process opens other connections."""

    def __init__(self, url: str, *, http: httpx2.Client | None = None, proxy: str | None = None) -> None:
        self._proxy = _read_proxy(proxy, http)
        self._injected = http
        if http is None:
            self._verify = _verify(url, proxy)
            self._connect()

    def _connect(self) -> None:
        transport = DeadlineTransport(verify=self._verify, proxy=self._proxy)
        self._own, self._pid = httpx2.Client(transport=transport, trust_env=False, headers=AGENT), os.getpid()

    def _http(self) -> httpx2.Client:
        if self._injected is not None:
            return self._injected
        if self._pid != os.getpid():
            # The parent uses the inherited connections too: each process would read the other's replies.
            self._connect()
        return self._own

    async def exchange(self, request: HttpRequest, reader: ReplyReader) -> None:
        """Fills the reader, until its deadline; *raises* ClientError, httpx2.HTTPError, TimeoutError."""
        http = self._http()
        with http.stream(**_arguments(http, request, reader)) as response:
            reader.begin(response)
            for chunk in response.iter_bytes():
                reader.take(chunk)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def close(self) -> None:
        """Closes the connections, except those of an injected client."""
        if self._injected is None and self._pid == os.getpid():
            self._own.close()


class AsyncNetwork:
    """Needs asyncio; each event loop has its own connections, which end with it."""

    def __init__(self, url: str, *, http: httpx2.AsyncClient | None = None, proxy: str | None = None) -> None:
        self._proxy = _read_proxy(proxy, http)
        self._injected = http
        self._verify = True if http is not None else _verify(url, proxy)
        self._own: dict[asyncio.AbstractEventLoop, tuple[httpx2.AsyncClient, AsyncGenerator[None]]] = {}

    async def _http(self) -> httpx2.AsyncClient:
        if self._injected is not None:
            return self._injected
        loop = asyncio.get_running_loop()
        if loop not in self._own:
            self._own = {each: own for each, own in self._own.items() if not each.is_closed()}
            http = httpx2.AsyncClient(verify=self._verify, trust_env=False, headers=AGENT, proxy=self._proxy)
            closing = _close_at_the_end(http)
            await anext(closing)
            self._own[loop] = http, closing
        return self._own[loop][0]

    async def exchange(self, request: HttpRequest, reader: ReplyReader) -> None:
        http = await self._http()
        async with (
            asyncio.timeout(reader.deadline.left),
            http.stream(**_arguments(http, request, reader)) as response,
            aclosing(response.aiter_bytes()) as chunks,
        ):
            reader.begin(response)
            async for chunk in chunks:
                reader.take(chunk)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """Closes the running loop's connections; those of another loop end with that loop."""
        own = self._own.get(asyncio.get_running_loop())
        if own is not None:
            await own[1].aclose()


Network = BlockingNetwork | AsyncNetwork


async def _close_at_the_end(http: httpx2.AsyncClient) -> AsyncGenerator[None]:
    """A generator that closes the client when it is closed: `asyncio.run` does that before its loop ends."""
    try:
        yield
    finally:
        await http.aclose()


def _read_proxy(proxy: str | None, http: object) -> httpx2.Proxy | None:
    if http is not None and proxy is not None:
        raise ConfigurationError("proxy and http exclude each other; give the proxy to the injected client")
    return None if proxy is None else httpx2.Proxy(proxy)


def _verify(url: str, proxy: str | None) -> ssl.SSLContext:
    """If no TLS is used, a context that trusts nobody, because reading all certificates takes 20 ms.

    *Raises* ConfigurationError for certificates in the environment that cannot be read.
    """
    if url.startswith("http:") and proxy is None:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context = httpx2.create_ssl_context(trust_env=False)
    for name, kind in TRUSTED.items():
        place = os.environ.get(name)
        if place:
            try:
                context.load_verify_locations(**{kind: place})
            except (OSError, ssl.SSLError) as exc:
                raise ConfigurationError(f"{name}={place} holds no certificates that can be read: {exc}") from exc
    return context


def _arguments(http: httpx2.Client | httpx2.AsyncClient, request: HttpRequest, reader: ReplyReader) -> dict[str, Any]:
    return {
        "method": request.method,
        "url": request.url,
        # Identity: what is not compressed cannot unfold to more bytes than the limit.
        "headers": {**request.headers, "accept-encoding": "identity"},
        "content": request.body or None,
        "timeout": reader.deadline.timeouts(),
        "follow_redirects": False,
        # An injected client's own credential gives way to the request's.
        "auth": None if "authorization" in request.headers else http.auth,
    }
