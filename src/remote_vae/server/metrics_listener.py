"""The metrics at another address than the rest."""

import socket

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from remote_vae.errors import ConfigurationError, RemoteVAEError, UnknownRoute
from remote_vae.server.error_responses import on_error
from remote_vae.server.pages import Page, page_only


class MetricsListener:
    """Pure ASGI: a request that comes in at this address gets one page, without a key, and nothing besides."""

    def __init__(self, app: ASGIApp, *, address: tuple[str, int], path: str, page: Page) -> None:
        """*Raises* ConfigurationError for a host name that has no address."""
        self._app = app
        host, self._port = address
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._host = socket.getaddrinfo(host, None, family)[0][4][0]
        except (OSError, UnicodeError) as exc:
            raise ConfigurationError(f"the metrics cannot be at {host}:{self._port}, which is no address") from exc
        self._path = path
        self._page = page_only(page)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._is_addressed(scope):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            if scope["path"] != self._path:
                raise UnknownRoute(f"at this address there is {self._path} alone")
            response = await self._page(request)
        except RemoteVAEError as exc:
            response = await on_error(request, exc)
        await response(scope, receive, send)

    def _is_addressed(self, scope: Scope) -> bool:
        """Whether the connection was made to this address; the application may have the same port at another one."""
        host, port = scope.get("server") or ("", None)
        return port == self._port and self._host in (host, "0.0.0.0", "::")
