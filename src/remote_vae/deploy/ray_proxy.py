"""What Ray Serve's HTTP proxy adds to its answers: a request that can be sent again is answered in our own JSON.

Ray's proxy answers 500 in plain text for a replica that died over a request, and 404 until it has heard of an
application. Clients repeat neither. Ray wraps its proxy in the middlewares of the function that
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names, and `middlewares` is that function.
"""

from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remote_vae.deploy.ray_flow import Reporting
from remote_vae.errors import ReplicaFailed
from remote_vae.protocol.replies import render_error, request_id_of
from remote_vae.server.browser import HARMLESS

CALLBACK: Final = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
ROUTES: Final = "/-/routes"  # Ray's own page: a JSON object with a member for each application
NO_ROUTES: Final = b"{}"


def middlewares() -> list[Middleware]:
    """Ray calls this function in each of its proxies."""
    return [Middleware(Repeatable), Middleware(Reporting)]


class Repeatable:
    """Pure ASGI: 503 with Retry-After if the proxy has no answer, or no application yet; every other answer as it is.

    Ray's proxy returns without an answer if the replica of a request is gone. If the answer had begun, the connection
    is closed, and clients repeat the request for that reason.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = replaced = False

        async def send_or_replace(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                _make_harmless(message)
                replaced = _is_not_found_of_ray(message) and not await self._knows_applications(scope)
                if replaced:
                    await _send_unavailable(scope, receive, send)
            if not replaced:
                await send(message)

        await self._app(scope, receive, send_or_replace)
        if not started:
            await _send_unavailable(scope, receive, send)

    async def _knows_applications(self, scope: Scope) -> bool:
        """Asks the proxy for its routes, as a client could."""
        status, body = 0, b""

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, body
            status = message.get("status", status)
            body += message.get("body", b"")

        asked = {**scope, "method": "GET", "path": ROUTES, "raw_path": ROUTES.encode(), "query_string": b""}
        await self._app(asked, receive, send)
        return status == 200 and body.strip() != NO_ROUTES


def _is_not_found_of_ray(message: Message) -> bool:
    """Our own errors are JSON; Ray's are plain text."""
    media = next((value for name, value in message["headers"] if name.lower() == b"content-type"), b"")
    return bool(message["status"] == 404 and media.startswith(b"text/plain"))


def _make_harmless(start: Message) -> None:
    """Adds to Ray's own answers what every reply of ours says to browsers."""
    headers = MutableHeaders(scope=start)
    for name, value in HARMLESS.items():
        headers.setdefault(name, value)


async def _send_unavailable(scope: Scope, receive: Receive, send: Send) -> None:
    error = ReplicaFailed("no replica has answered this request; try again")
    error.request_id = request_id_of(Headers(scope=scope))  # Ray's own middleware has put one there if there was none
    status, headers, body = render_error(error)
    await Response(body, status, HARMLESS | dict(headers))(scope, receive, send)
