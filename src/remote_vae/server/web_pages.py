"""Which web pages may use the server, because a browser lends every site that its user visits the user's own network.

A page of another site can send simple requests without asking first. A site can also point its own name at this
server's address (DNS rebinding), so that the browser takes both for one site and lets the page read the replies.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from remote_vae.errors import ForeignOrigin, RemoteVAEError, UnknownHost
from remote_vae.server.error_responses import on_error
from remote_vae.values import clip

ALL: Final = "*"
PORT: Final = re.compile(r":[0-9]{0,5}\Z")
# No site on the internet can own a name below these. *Source*: RFC 6761, 6762 and 8375; ICANN reserves .internal.
PRIVATE: Final = (".localhost", ".local", ".internal", ".home.arpa", ".test")


class WebPages:
    """Pure ASGI: 421 under a name that a web site could own, 403 for a page of an origin that is not named.

    Programs that are no browsers send no `Origin` and no `Sec-Fetch-Site`, so only the name concerns them.
    """

    def __init__(self, app: ASGIApp, *, origins: Sequence[str], names: Sequence[str] | None) -> None:
        """`names` are the names of this server besides those of `origins`; None serves under every name."""
        self._app = app
        self._origins = frozenset(origin.lower() for origin in origins)
        known = [*(names or ()), *(urlsplit(origin).hostname or "" for origin in origins)]
        self._names = None if names is None or ALL in origins else frozenset(name.lower() for name in known)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check_host(scope)
                self._check_origin(scope)
            except RemoteVAEError as exc:
                await (await on_error(Request(scope), exc))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check_host(self, scope: Scope) -> None:
        """*Raises* UnknownHost."""
        host = Headers(scope=scope).get("host", "")
        if self._names is None or not host:
            return  # HTTP/1.0 may leave the name out, which no browser does
        name = PORT.sub("", host.lower()).removesuffix(".")
        if name in self._names or _is_private(name):
            return
        shown, scheme = clip(host, 80), scope.get("scheme", "http")
        raise UnknownHost(
            f"this server does not know itself as {shown!r}, which may be the name of a web site that has pointed it "
            "here; ask by IP address, or, if the name is this server's, start it with "
            f"--allow-origin {scheme}://{shown}",
            host=shown,
        )

    def _check_origin(self, scope: Scope) -> None:
        """*Raises* ForeignOrigin. What the browser says of the page counts, and no page can say it otherwise."""
        headers = Headers(scope=scope)
        origin, site = ", ".join(headers.getlist("origin")).lower(), headers.get("sec-fetch-site")
        if ALL in self._origins or origin in self._origins or site in ("same-origin", "none"):
            return
        if origin in {f"{scheme}://{headers.get('host', '').lower()}" for scheme in ("http", "https")}:
            return  # a proxy may have ended TLS
        followed_link = scope["method"] in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        if not origin and (site is None or followed_link):
            return
        shown = clip(origin or headers.get("referer", "") or "another site", 80)
        named = shown if origin and origin != "null" else "https://SITE"
        raise ForeignOrigin(
            f"a web page of {shown!r} asks, and the pages of other origins may not use this server; if this one may, "
            f"start the server with --allow-origin {named}",
            origin=shown,
        )


def _is_private(name: str) -> bool:
    """Whether no web site can have this name: an IP address, a name without a dot, or one below a private suffix."""
    if "." not in name or name.endswith(PRIVATE):
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def own_names(host: str) -> tuple[str, ...]:
    """The names by which this machine knows itself, and the address that the server was told to listen on."""
    return (host, socket.gethostname())
