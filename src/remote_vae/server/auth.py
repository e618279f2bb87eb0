"""API keys and rate limits: which requests the server takes, and how many of one client."""

import base64
import binascii
import ipaddress
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from remote_vae.errors import RemoteVAEError, TooManyRequests, Unauthorized
from remote_vae.server.browser import wants_page
from remote_vae.server.endpoints import CLIENT
from remote_vae.server.error_responses import on_error
from remote_vae.server.keys import Keys

OPEN_PATHS: Final = (
    b"/live",
    b"/ready",
    b"/health",
)  # for probes, which send no keys; the answer is only "yes" or "no"
PAGE_PART: Final = re.compile(rb"/page/[a-z]+\.[a-z]+")  # the page's files, which are the same on every server


class Rates:
    """Allows each client a number of requests a second, and at most that number at once.

    The table has one number for each client, and at most `most` clients: those that have not asked for longest are
    forgotten first. *Source*: the virtual scheduling algorithm of ITU-T I.371.
    """

    def __init__(self, per_second: float, *, clock: Callable[[], float] = time.monotonic, most: int = 10_000) -> None:
        self._interval = 1 / per_second
        self._ahead = max(1 - self._interval, 0.0)  # seconds that a client may be ahead of its schedule
        self._clock = clock
        self._most = most
        self._due: OrderedDict[str, float] = OrderedDict()  # in the order in which the clients last had a turn

    def take(self, client: str) -> None:
        """Counts one request; *raises* TooManyRequests with the time to wait."""
        now = self._clock()
        due = max(self._due.get(client, now), now)
        wait = due - now - self._ahead
        if wait > 1e-9:
            text = f"at most {1 / self._interval:g} requests a second are served to one client"
            raise TooManyRequests(text, retry_after=max(1, math.ceil(wait)))
        self._due[client] = due + self._interval
        self._due.move_to_end(client)
        if len(self._due) > self._most:
            self._due.popitem(last=False)


class Gate:
    """Pure ASGI: if keys are set, a request needs one; if a rate is set, each client has that rate.

    The gate judges the path's bytes as they came: a path that is not one of the open paths letter for letter needs a
    key, however the rest of the server would read it. A key in the path is taken off, so that no other layer sees it.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys, rates: Rates | None) -> None:
        self._app = app
        self._keys = keys
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope):
            try:
                scope = self._admitted(scope)
            except RemoteVAEError as exc:
                await (await on_error(Request(scope), exc))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admitted(self, scope: Scope) -> Scope:
        if self._keys:
            client, scope = self._by_key(scope)
        else:
            client = self._keys.digest(_network(scope))
        if self._rates is not None:
            self._rates.take(client)
        return {**scope, CLIENT: client}

    def _by_key(self, scope: Scope) -> tuple[str, Scope]:
        first = _raw_path(scope)[1:].partition(b"/")[0].decode("latin-1")
        by_path, by_header = self._keys.find(first), self._keys.find(_credential(scope))
        if by_path is not None:
            return by_path, _without(scope, first)
        if by_header is not None:
            return by_header, scope
        raise Unauthorized(
            "this server needs a key: send it as 'Authorization: Bearer KEY', as the password of Basic, or as the "
            "first part of the path"
        )


def _raw_path(scope: Scope) -> bytes:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw


def _is_open(scope: Scope) -> bool:
    """Whether a request needs no key: probes, and the page, into which the user then enters a key."""
    if scope["method"] not in ("GET", "HEAD"):
        return False
    path = _raw_path(scope)
    if path == b"/":
        return wants_page(Request(scope))
    return path.removesuffix(b"/") in OPEN_PATHS or PAGE_PART.fullmatch(path) is not None


def _credential(scope: Scope) -> str:
    """The key in the request's Authorization header; empty if there are two such headers."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    scheme, _, rest = values[0].decode("latin-1").partition(" ") if len(values) == 1 else ("", "", "")
    if scheme.lower() == "bearer":
        return rest.strip(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(rest.strip(" "), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _without(scope: Scope, first: str) -> Scope:
    """The scope as if the path had begun after its first part, which is a key."""
    length = len(first) + 1  # a key has no character that could be escaped, so both spellings have the same length
    return {**scope, "path": scope["path"][length:] or "/", "raw_path": _raw_path(scope)[length:] or b"/"}


def _network(scope: Scope) -> str:
    """The client's address, or its /64 network: one holder of IPv6 addresses has at least 2^64 of them.

    A proxy on this machine says what the address is, and what it says may be anything.
    """
    host: str = scope["client"][0] if scope.get("client") else ""
    try:
        return str(ipaddress.ip_network((host, 64), strict=False)) if ":" in host else host
    except ValueError:
        return host
