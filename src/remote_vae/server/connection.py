"""One TCP connection: uvicorn's HTTP/1.1, with a bound on the size and the time of what comes before a body.

Whatever is refused here never reaches the application, and is answered in the same JSON form as all other errors.
"""

import asyncio
import uuid
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from remote_vae.errors import HeadTooLarge, MalformedRequest, RemoteVAEError, RequestTimeout
from remote_vae.protocol.replies import render_error
from remote_vae.server.settings import Settings


def connection_class(settings: Settings) -> type["Connection"]:
    """The protocol class for uvicorn, which builds it itself and knows nothing of our settings."""
    return type("BoundConnection", (Connection,), {"settings": settings})


class Connection(HttpToolsProtocol):
    """Counts a request's head while it arrives, and closes what is neither read nor written in time."""

    settings: ClassVar[Settings]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # of the head that is arriving; 0 between requests
        self._body_arriving = False
        self._refusal: RemoteVAEError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head_within(self.settings.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_bytes:
            self._head_bytes += len(data)  # a line without an end reaches no callback of the parser
        if self._head_bytes > self.settings.max_head_bytes:
            self._refuse(self._too_large())
        else:
            super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 1

    def on_headers_complete(self) -> None:
        try:
            self._check_head()
        except RemoteVAEError as exc:
            self._refusal = exc  # the parser stops at any exception; send_400_response then says this one
            raise
        self._head_bytes, self._body_arriving = 0, True
        self._cancel_deadline()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._body_arriving = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        another = bool(self.pipeline)
        super().on_response_complete()
        if not another and not self.transport.is_closing():
            # A body that was refused unread is still read away, or its sender would never see the answer.
            self._expect_head_within(self.settings.body_seconds if self._body_arriving else self.settings.head_seconds)

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what its parser refuses."""
        self._refuse(self._refusal or MalformedRequest("this is not a valid HTTP/1.1 request"))

    def _check_head(self) -> None:
        settings = self.settings
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if len(self.headers) > settings.max_headers or size > settings.max_head_bytes:
            raise self._too_large()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise MalformedRequest(f"the request has {hosts} Host headers; expected one", value=hosts)

    def _too_large(self) -> HeadTooLarge:
        return HeadTooLarge(
            f"the URL and headers are over the limit of {self.settings.max_head_bytes} bytes and "
            f"{self.settings.max_headers} headers",
            max_headers=self.settings.max_headers,
            limit=self.settings.max_head_bytes,
        )

    def _refuse(self, error: RemoteVAEError) -> None:
        """Answers, unless an answer is under way already, and closes."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            error.request_id = uuid.uuid4().hex
            status, headers, body = render_error(error)
            headers += [("content-length", str(len(body))), ("connection", "close")]
            head = "".join(f"{name}: {value}\r\n" for name, value in headers)
            self.transport.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{head}\r\n".encode() + body)
        self.transport.close()

    def _expect_head_within(self, seconds: float) -> None:
        self._cancel_deadline()
        self._deadline = self.loop.call_later(seconds, self._head_is_late, seconds)

    def _head_is_late(self, seconds: float) -> None:
        if self._head_bytes:
            self._refuse(RequestTimeout(f"the headers did not arrive within {seconds:g} s", seconds=seconds))
        else:
            self.transport.close()

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
