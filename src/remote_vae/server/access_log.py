"""The outermost layer of the application: records every request, and answers errors that no other layer caught."""

import logging
import time
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remote_vae.errors import InternalError
from remote_vae.protocol.replies import request_id_of
from remote_vae.server.browser import HARMLESS
from remote_vae.server.error_responses import on_error
from remote_vae.server.metrics import Metrics
from remote_vae.server.record import Record, record_of
from remote_vae.server.tracing import Tracing

LOG: Final = logging.getLogger("remote_vae.server")


class RequestRecorder:
    """Pure ASGI, around all other layers: gives each request its record, and reports it when the request is over.

    The request's id is the caller's own id if that is harmless. Every reply has the id and the time that it took.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, tracing: Tracing | None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, record = time.time_ns(), record_of(scope)

        async def counting_receive() -> Message:
            message = await receive()
            record.received += len(message.get("body", b""))
            return message

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(message, record)
                record.status = message["status"]
            record.sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._answer(scope, counting_receive, counting_send)
        finally:
            try:
                self._report(record, began_ns=began, parent=Headers(scope=scope).get("traceparent"))
            except Exception as exc:  # boundary: the reply is on its way already, and is not the worse for this
                LOG.error("a request was not reported", extra={"request_id": record.request_id}, exc_info=exc)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An unforeseen error is answered with our JSON, or ends the connection if the reply has begun already."""
        record = record_of(scope)
        try:
            self._metrics.begin()
            headers = Headers(scope=scope)
            record.request_id = request_id_of(headers) or record.request_id
            record.call_id = request_id_of(headers, "x-call-id") or ""
            await self._app(scope, receive, send)
        except Exception as exc:  # boundary: a fault of any route or layer
            if record.status:
                record.error = InternalError.code
                LOG.error("a reply broke off", extra={"request_id": record.request_id}, exc_info=exc)
                raise  # the HTTP server closes the connection, by which the client sees that the reply is not whole
            record.status = InternalError.status
            await (await on_error(Request(scope), exc))(scope, receive, send)

    def _report(self, record: Record, *, began_ns: int, parent: str | None) -> None:
        self._metrics.end(record)
        fields = {
            "request_id": record.request_id,
            "method": record.method,
            "route": record.route,
            "model": record.model,
            "status": record.status,
            "error": record.error,
            "plan": record.plan,
            "ms": round(record.seconds * 1000, 2),
            "bytes_in": record.received,
            "bytes_out": record.sent,
        }
        LOG.info("request", extra={name: value for name, value in fields.items() if value != ""})
        if self._tracing is not None:
            self._tracing.span(record, began_ns=began_ns, parent=parent)


def _add_headers(start: Message, record: Record) -> None:
    """Adds the request's id and time to the head of its reply, keeps it out of caches and harmless in browsers."""
    headers = MutableHeaders(scope=start)
    headers["x-request-id"] = record.request_id
    if record.call_id:
        headers["x-call-id"] = record.call_id
    for name, value in {"cache-control": "no-store", **HARMLESS}.items():
        headers.setdefault(name, value)
    stages = headers.get("server-timing")
    total = f"total;dur={record.seconds * 1000:.2f}"
    headers["server-timing"] = f"{stages}, {total}" if stages else total
