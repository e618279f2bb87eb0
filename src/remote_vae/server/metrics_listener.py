"""The metrics at an address of their own."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from remote_vae.errors import RemoteVAEError, UnknownRoute
from remote_vae.server.endpoints import Page, page_only
from remote_vae.server.error_responses import on_error


class MetricsListener:
    """Pure ASGI: what comes in at this port gets one page, without a key, and nothing else of the application."""

    def __init__(self, app: ASGIApp, *, port: int, path: str, page: Page) -> None:
        self._app = app
        self._port = port
        self._path = path
        self._page = page_only(page)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["server"][1] != self._port:
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
