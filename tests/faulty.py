"""Faults in a server's own code: each of these places raises if a request's x-fault header names it.

What must not hold the event loop waits until the server has answered another request.
"""

import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

SECRET = "a word of the request"
PROMISED = 2**20  # bytes of a reply that breaks off after the first of them


class FormatterFault(Exception):
    """Cannot be written into the log."""


def fail(place: str) -> None:
    """Raises an error that another one led to."""
    try:
        raise ZeroDivisionError(SECRET)
    except ZeroDivisionError as exc:
        raise (FormatterFault if place == "formatter" else KeyError)(SECRET) from exc


def install() -> None:
    from remote_vae.server import access_log
    from remote_vae.server.auth import Gate
    from remote_vae.server.endpoints import Endpoints
    from remote_vae.server.logs import JsonLines
    from remote_vae.server.metrics_listener import MetricsListener

    _break(Gate, "_admitted", "gate", _headers)
    _break(MetricsListener, "_is_addressed", "listener", _headers)
    _break(access_log.RequestRecorder, "_report", "report", lambda record, **_: {"x-fault": record.request_id})
    add_headers = access_log._add_headers
    read_id, write_line, docs = access_log.request_id_of, JsonLines.format, Endpoints.docs

    def request_id_of(headers: Mapping[str, str], *names: str) -> str | None:
        if headers.get("x-fault") == "recorder":
            fail("recorder")
        return read_id(headers, *names)

    def broken_headers(start: Any, record: Any) -> None:
        if record.request_id == "headers":
            fail("headers")
        add_headers(start, record)

    def format_line(self: JsonLines, record: logging.LogRecord) -> str:
        if record.exc_info and isinstance(record.exc_info[1], FormatterFault):
            raise ValueError(SECRET)
        return write_line(self, record)

    async def broken_docs(self: Endpoints, request: Request) -> Response:
        fault = request.headers.get("x-fault", "")
        if fault in ("route", "formatter"):
            fail(fault)
        if fault == "reply":
            return StreamingResponse(_half(), headers={"content-length": str(PROMISED)})
        return await docs(self, request)

    _wait_for_live(Endpoints)
    access_log.request_id_of = request_id_of
    access_log._add_headers = broken_headers
    JsonLines.format = format_line  # type: ignore[method-assign]
    Endpoints.docs = broken_docs  # type: ignore[method-assign]


def _wait_for_live(owner: Any) -> None:
    """JSON bodies are read, and JSON replies written, only when GET /live has been answered meanwhile."""
    from remote_vae.protocol import wire
    from remote_vae.server import rendering

    answered, live = threading.Event(), owner.live

    async def noted_live(self: Any, request: Request) -> Response:
        answered.set()
        return await live(self, request)

    def waiting(work: Callable[..., Any], is_json: Callable[..., bool]) -> Callable[..., Any]:
        def wait_and_work(*args: Any, **options: Any) -> Any:
            if is_json(*args):
                answered.clear()
                if not answered.wait(timeout=20):
                    fail("held")
            return work(*args, **options)

        return wait_and_work

    owner.live = noted_live
    for name in ("parse_decode", "parse_encode"):
        setattr(wire, name, waiting(getattr(wire, name), lambda head, _: head.body_is_json))
    rendering.render_reply = waiting(rendering.render_reply, lambda reply: reply.format.name == "base64")


async def _half() -> AsyncIterator[bytes]:
    yield b"x"
    fail("reply")


def _headers(scope: Any) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in scope["headers"]}


def _break(owner: type, name: str, place: str, headers_of: Callable[..., Mapping[str, str]]) -> None:
    whole = getattr(owner, name)

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        if headers_of(*args, **kwargs).get("x-fault") == place:
            fail(place)
        return whole(self, *args, **kwargs)

    setattr(owner, name, broken)
