"""The one seam to the network: a request -> a reply, with retries, for sync and async alike.

Nothing is taken from the environment: no proxy variables, no netrc, no SSL_CERT_FILE, so that credentials and
latents go only where the caller sends them. A proxy is an argument; another certificate store comes with an
injected httpx2 client. Redirects are never followed.
"""

import asyncio
import ssl
import time
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

import httpx2

from remote_vae.client.deadline import DeadlineTransport, enforced
from remote_vae.client.exchange import (
    Deadline,
    Failure,
    HttpReply,
    HttpRequest,
    Outcome,
    ReplyReader,
    failure_of,
    settle,
)
from remote_vae.client.retry import Tries
from remote_vae.errors import ClientError, ConfigurationError, InvalidValue

GIB: Final = 1024**3
LONGEST_TIMEOUT: Final = 86400.0
PROBE_SECONDS: Final = 10.0
AGENT: Final = {"user-agent": "remote-vae"}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one call may take: seconds over all its tries, tries, and bytes of the reply.

    *Raises* InvalidValue for what cannot be kept.
    """

    timeout: float = 300.0
    tries: int = 3
    max_reply_bytes: int = GIB

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise InvalidValue(f"timeout={self.timeout} must be above 0 and at most {LONGEST_TIMEOUT:.0f} seconds")
        if self.tries < 1:
            raise InvalidValue(f"retries={self.tries} must be at least 1: the first try counts")
        if self.max_reply_bytes < 1:
            raise InvalidValue(f"max_reply_bytes={self.max_reply_bytes} must be at least 1")

    def of_probe(self) -> "Bounds":
        """The bounds of a question that is only of use when it is answered soon."""
        return replace(self, timeout=min(self.timeout, PROBE_SECONDS), tries=1)


class Transport:
    """Sends requests to the host of `url` over an httpx2 client, its own or the caller's."""

    def __init__(
        self, url: str, *, bounds: Bounds, http: httpx2.Client | None = None, proxy: str | None = None
    ) -> None:
        _check_proxy(http, proxy)
        self.bounds = bounds
        self._owned = http is None
        self._http = http or httpx2.Client(
            transport=DeadlineTransport(verify=_verify(url, proxy), proxy=proxy), trust_env=False, headers=AGENT
        )

    def send(self, request: HttpRequest, *, bounds: Bounds | None = None) -> HttpReply:
        """*Raises* ConnectionFailed, ClientTimeout, InvalidReply."""
        bounds = bounds or self.bounds
        tries = Tries(most=bounds.tries, budget=bounds.timeout)
        while True:
            outcome = self._exchange(request, tries.deadline, bounds.max_reply_bytes)
            pause = tries.pause_after(outcome)
            if pause is None:
                return settle(outcome)
            time.sleep(pause)

    def _exchange(self, request: HttpRequest, deadline: Deadline, limit: int) -> Outcome:
        reader: ReplyReader | None = None
        try:
            with enforced(deadline):
                response = self._http.send(
                    _prepare(self._http, request, deadline),
                    stream=True,
                    follow_redirects=False,
                    auth=_auth(self._http, request),
                )
                try:
                    reader = ReplyReader(response, limit=limit, deadline=deadline)
                    for chunk in response.iter_bytes():
                        reader.take(chunk)
                finally:
                    response.close()
        except ClientError as exc:
            return Failure(exc, passing=False)
        except httpx2.HTTPError as exc:
            return failure_of(exc, url=request.url, in_body=reader is not None)
        return reader.reply()

    def close(self) -> None:
        if self._owned:
            self._http.close()


class AsyncTransport:
    """Transport's twin."""

    def __init__(
        self, url: str, *, bounds: Bounds, http: httpx2.AsyncClient | None = None, proxy: str | None = None
    ) -> None:
        _check_proxy(http, proxy)
        self.bounds = bounds
        self._owned = http is None
        self._http = http or httpx2.AsyncClient(verify=_verify(url, proxy), trust_env=False, headers=AGENT, proxy=proxy)

    async def send(self, request: HttpRequest, *, bounds: Bounds | None = None) -> HttpReply:
        """*Raises* ConnectionFailed, ClientTimeout, InvalidReply."""
        bounds = bounds or self.bounds
        tries = Tries(most=bounds.tries, budget=bounds.timeout)
        while True:
            outcome = await self._exchange(request, tries.deadline, bounds.max_reply_bytes)
            pause = tries.pause_after(outcome)
            if pause is None:
                return settle(outcome)
            await asyncio.sleep(pause)

    async def _exchange(self, request: HttpRequest, deadline: Deadline, limit: int) -> Outcome:
        reader: ReplyReader | None = None
        try:
            async with asyncio.timeout(deadline.left):
                response = await self._http.send(
                    _prepare(self._http, request, deadline),
                    stream=True,
                    follow_redirects=False,
                    auth=_auth(self._http, request),
                )
                try:
                    reader = ReplyReader(response, limit=limit, deadline=deadline)
                    async with aclosing(response.aiter_bytes()) as chunks:
                        async for chunk in chunks:
                            reader.take(chunk)
                finally:
                    await response.aclose()
        except ClientError as exc:
            return Failure(exc, passing=False)
        except (httpx2.HTTPError, TimeoutError) as exc:
            return failure_of(exc, url=request.url, in_body=reader is not None)
        return reader.reply()

    async def close(self) -> None:
        if self._owned:
            await self._http.aclose()


def _check_proxy(http: object, proxy: str | None) -> None:
    if http is not None and proxy is not None:
        raise ConfigurationError("proxy and http exclude each other; give the proxy to the injected client")


def _verify(url: str, proxy: str | None) -> ssl.SSLContext | bool:
    """Without TLS on the way a context that trusts nobody, because reading all certificates takes 20 ms."""
    plain = url.startswith("http:") and proxy is None
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else True


def _prepare(http: httpx2.Client | httpx2.AsyncClient, request: HttpRequest, deadline: Deadline) -> httpx2.Request:
    # Identity: what is not compressed cannot unfold to more bytes than the limit.
    headers = {**request.headers, "accept-encoding": "identity"}
    content = request.body or None
    return http.build_request(
        request.method, request.url, headers=headers, content=content, timeout=deadline.timeouts()
    )


def _auth(http: httpx2.Client | httpx2.AsyncClient, request: HttpRequest) -> httpx2.Auth | None:
    """A credential of ours is not to be replaced by one that an injected client brings."""
    return None if "authorization" in request.headers else http.auth
