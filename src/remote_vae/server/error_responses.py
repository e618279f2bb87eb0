"""Errors -> JSON replies, in one place."""

import logging
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from remote_vae.errors import (
    InternalError,
    MethodNotAllowed,
    RemoteVAEError,
    RequestError,
    RequestTimeout,
    Unauthorized,
    UnknownRoute,
)
from remote_vae.protocol.replies import render_error
from remote_vae.server.record import record_of

LOG: Final = logging.getLogger("remote_vae.server")


async def on_error(request: Request, exc: Exception) -> Response:
    """The reply to an error of ours, of Starlette's, or any other exception, which is logged with its frames."""
    error = _as_ours(exc)
    record = record_of(request.scope)
    error.request_id, record.error = record.request_id, error.code
    status, headers, body = render_error(error)
    allowed = error.detail.get("allowed")
    if isinstance(error, MethodNotAllowed) and isinstance(allowed, list):
        headers.append(("allow", ", ".join(allowed)))
    if isinstance(error, Unauthorized):
        headers.append(("www-authenticate", _challenge(request)))
    if isinstance(error, RequestTimeout):
        headers.append(("connection", "close"))  # the rest of the body would still be on its way
    if isinstance(error, InternalError):
        LOG.error("internal error", extra={"request_id": record.request_id}, exc_info=exc)
    return Response(body, status, dict(headers))


def _challenge(request: Request) -> str:
    """A client that tried Bearer is asked for Bearer alone: if asked for Basic, a browser would open a dialogue."""
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
