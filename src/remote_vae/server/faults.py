"""Errors -> JSON replies, in one place, and the request id on every reply."""

import logging
import uuid
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remote_vae.errors import (
    InternalError,
    MethodNotAllowed,
    RemoteVAEError,
    RequestError,
    RequestTimeout,
    Unauthorized,
    UnknownRoute,
)
from remote_vae.protocol.replies import render_error, request_id_of
from remote_vae.server.endpoints import REQUEST_ID

LOG: Final = logging.getLogger("remote_vae.server")


async def on_error(request: Request, exc: Exception) -> Response:
    """Starlette's handler for our own errors, its own, and everything else."""
    error = _as_ours(exc)
    error.request_id = request.scope.get(REQUEST_ID)
    status, headers, body = render_error(error)
    allowed = error.detail.get("allowed")
    if isinstance(error, MethodNotAllowed) and isinstance(allowed, list):
        headers.append(("allow", ", ".join(allowed)))
    if isinstance(error, Unauthorized):
        headers.append(("www-authenticate", _challenge(request)))
    if isinstance(error, RequestTimeout):
        headers.append(("connection", "close"))  # the rest of the body would still be on its way
    if isinstance(error, InternalError):
        LOG.error("request %s: %s", error.request_id, type(exc).__name__)
    return Response(body, status, dict(headers))


def _challenge(request: Request) -> str:
    """Who comes with Bearer is asked for Bearer alone: a browser asked for Basic would open a box of its own."""
    tried_bearer = request.headers.get("authorization", "").lower().startswith("bearer")
    return 'Bearer realm="remote-vae"' if tried_bearer else 'Bearer realm="remote-vae", Basic realm="remote-vae"'


def _as_ours(exc: Exception) -> RemoteVAEError:
    if isinstance(exc, RemoteVAEError):
        return exc
    if isinstance(exc, HTTPException):
        if exc.status_code == 405:
            return MethodNotAllowed("this method does nothing anywhere here", allowed=["GET", "HEAD", "POST"])
        return UnknownRoute("there is nothing here") if exc.status_code == 404 else RequestError(exc.detail)
    return InternalError("something went wrong in the server; its log tells more under this request id")


class RequestId:
    """Pure ASGI: gives every request an id, the caller's own where it is harmless, and says it in the reply."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope)) or uuid.uuid4().hex
        scope[REQUEST_ID] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)
