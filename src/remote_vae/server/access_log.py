"""What is noted of every request: its id, its time, its bytes and its fate, for metrics, log and traces."""

import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remote_vae.protocol.replies import request_id_of
from remote_vae.server.metrics import Metrics
from remote_vae.server.tracing import Tracing

LOG: Final = logging.getLogger("remote_vae.server")
RECORD: Final = "remote_vae.record"  # in the scope


@dataclass(slots=True)
class Record:
    """One request; whoever answers it fills in what it learns. `stages` are seconds by name."""

    request_id: str
    method: str
    route: str = "other"
    model: str = ""
    plan: str = ""
    error: str = ""
    status: int = 0
    received: int = 0
    sent: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the request's head was complete."""
        return time.perf_counter() - self.started


def record_of(scope: Scope) -> Record:
    found: Record = scope[RECORD]
    return found


class RequestRecorder:
    """Pure ASGI, around everything else: gives each request its record, and reports it when it is over.

    The request's id is the caller's own where that is harmless; it and the time taken are said in every reply.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, tracing: Tracing | None) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = Record(request_id_of(headers) or uuid.uuid4().hex, scope["method"])
        began = time.time_ns()

        async def counting_receive() -> Message:
            message = await receive()
            record.received += len(message.get("body", b""))
            return message

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                fields = MutableHeaders(scope=message)
                fields["x-request-id"] = record.request_id
                fields.setdefault("cache-control", "no-store")
                stages = fields.get("server-timing")
                total = f"total;dur={record.seconds * 1000:.2f}"
                fields["server-timing"] = f"{stages}, {total}" if stages else total
            record.sent += len(message.get("body", b""))
            await send(message)

        self._metrics.begin()
        try:
            await self._app({**scope, RECORD: record}, counting_receive, counting_send)
        finally:
            self._report(record)
            if self._tracing is not None:
                self._tracing.span(record, began_ns=began, parent=headers.get("traceparent"))

    def _report(self, record: Record) -> None:
        self._metrics.end(
            model=record.model,
            route=record.route,
            status=record.status,
            seconds=record.seconds,
            received=record.received,
            sent=record.sent,
        )
        if "media" in record.stages:
            self._metrics.stage(record.model, "media", record.stages["media"])
        info = {
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
        LOG.info("request", extra={name: value for name, value in info.items() if value != ""})
