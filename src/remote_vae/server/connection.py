"""One TCP connection: uvicorn's HTTP/1.1, with a bound on the size and the time of what comes before a body.

Whatever is refused here never reaches the application, and is answered in the same JSON form as all other errors.
"""

import asyncio
import re
import sys
import uuid
from http import HTTPStatus
from typing import Any, ClassVar, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from remote_vae.errors import (
    HeadTooLarge,
    MalformedRequest,
    MethodNotAllowed,
    RemoteVAEError,
    RequestTimeout,
    UnknownMethod,
    UnsupportedVersion,
    UriTooLong,
)
from remote_vae.protocol.replies import render_error
from remote_vae.server.metrics import Metrics
from remote_vae.server.settings import Settings

METHODS: Final = ["GET", "HEAD", "POST"]
SLICE: Final = 16_384  # bytes that the parser gets at once where their framing is counted
MOST_CHUNKS: Final = 65_536  # of one body
FAIR_FRAMING: Final = 16  # bytes around each chunk that are nobody's fault


_METHOD = re.compile(rb"(\r\n)*[A-Z]{1,32} /")


def connection_class(settings: Settings, metrics: Metrics) -> type["Connection"]:
    """The protocol class for uvicorn, which builds it itself and knows nothing of ours."""
    return type("BoundConnection", (Connection,), {"settings": settings, "metrics": metrics})


class Connection(HttpToolsProtocol):
    """Counts a request's head and its chunks while they arrive, and closes what is neither read nor written in time."""

    settings: ClassVar[Settings]
    metrics: ClassVar[Metrics]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0  # of the head that is arriving; 0 between requests
        self._body_arriving = False
        self._chunks = self._framing = 0  # of the body that is arriving: its chunks, and bytes that are not its own
        self._counted = False  # whether that body comes in chunks
        self._fed = self._again = b""  # what the parser has got last, and what it is to get next
        self._ignoring_upgrade = False
        self._refusal: RemoteVAEError | None = None
        self._began = 0.0  # of the head that is arriving, by the loop's clock
        self._unsent: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._began = self.loop.time()
        self._expect_head_within(self.settings.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        self._sent()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unsent is None:
            self._unsent = self.loop.call_later(self.settings.reply_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._sent()
        super().resume_writing()

    def _sent(self) -> None:
        if self._unsent is not None:
            self._unsent.cancel()
            self._unsent = None

    def data_received(self, data: bytes) -> None:
        if not self._head_bytes and not self._body_arriving and _is_of_the_first_age(data):
            self._refuse(MalformedRequest("the request's first line has no version of HTTP; expected HTTP/1.1"))
            return
        if self._body_arriving and not self._counted:
            super().data_received(data)  # the bytes of a body whose length is known: nothing is to be counted
            return
        for start in range(0, len(data), SLICE):
            self._again = data[start : start + SLICE]
            while self._again and not self.transport.is_closing():
                self._feed(self._again)

    def _feed(self, data: bytes) -> None:
        self._fed, self._again = data, b""
        if self._head_bytes:
            self._head_bytes += len(data)  # a line without an end reaches no callback of the parser
        if self._head_bytes > self.settings.max_head_bytes:
            self._refuse(self._too_large())
            return
        if self._body_arriving:
            self._framing += len(data)
        super().data_received(data)
        if self._body_arriving and self._framing - FAIR_FRAMING * self._chunks > self.settings.max_head_bytes:
            limit = self.settings.max_head_bytes
            self._refuse(MalformedRequest(f"the chunks' extensions and trailers are over {limit} bytes", limit=limit))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes, self._began = 1, self.loop.time()
        self._chunks = self._framing = 0
        self._counted = False

    def on_headers_complete(self) -> None:
        try:
            self._check_head()
        except RemoteVAEError as exc:
            self._refusal = exc  # the parser stops at any exception; send_400_response then says this one
            raise
        self._cancel_deadline()
        if self.parser.should_upgrade():
            self._ignoring_upgrade = True  # the parser stops here, and `_unsupported_upgrade_warning` is called
            return
        self._head_bytes, self._body_arriving = 0, True
        self._counted = any(name == b"transfer-encoding" for name, _ in self.headers)
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Called by the parser."""
        self._chunks += 1
        if self._chunks > MOST_CHUNKS:
            self._refusal = MalformedRequest(
                f"the body has over {MOST_CHUNKS} chunks; send larger ones", limit=MOST_CHUNKS
            )
            raise self._refusal

    def on_body(self, body: bytes) -> None:
        self._framing -= len(body)
        super().on_body(body)

    def _unsupported_upgrade_warning(self) -> None:
        """Called by uvicorn where a request would change the protocol; the parser then leaves its body unread.

        A server may ignore such a wish, and must then serve the request as it is: it is parsed again without it.
        *Source*: RFC 9110, 7.8.
        """
        stopped = sys.exception()
        rest = self._fed[stopped.args[0] :] if isinstance(stopped, httptools.HttpParserUpgrade) else b""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self._ignoring_upgrade, self._head_bytes = False, 0
        self.parser = httptools.HttpRequestParser(self)
        self._again = b"\r\n".join(lines) + b"\r\n\r\n" + rest

    def on_message_complete(self) -> None:
        if not self._ignoring_upgrade:
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
        waiting = self.cycle is not None and not self.cycle.response_complete
        if waiting and not self._body_arriving:
            # What came before is whole and will be answered. Nothing after it can be: where it would begin is unknown.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        self._refuse(self._refusal or _meaning_of(sys.exception(), self._fed))

    def _check_head(self) -> None:
        settings, version, method = self.settings, self.parser.get_http_version(), self.parser.get_method()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if len(self.headers) > settings.max_headers or size > settings.max_head_bytes:
            raise self._too_large()
        if version not in ("1.0", "1.1"):
            raise _wrong_version()
        if method == b"CONNECT":
            raise MethodNotAllowed("CONNECT does nothing here; this is no proxy", method="CONNECT", allowed=METHODS)
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise MalformedRequest(f"the request has {hosts} Host headers; expected one", value=hosts)
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and (codings != [b"chunked"] or version == "1.0"):
            raise MalformedRequest("transfer-encoding is read as chunked, once, and in HTTP/1.1 only")

    def _too_large(self) -> RemoteVAEError:
        settings = self.settings
        if len(self.url) > settings.max_query_bytes:
            return UriTooLong(
                f"the URL is over the limit of {settings.max_query_bytes} bytes", limit=settings.max_query_bytes
            )
        return HeadTooLarge(
            f"the URL and headers are over the limit of {settings.max_head_bytes} bytes and "
            f"{settings.max_headers} headers",
            max_headers=settings.max_headers,
            limit=settings.max_head_bytes,
        )

    def _refuse(self, error: RemoteVAEError) -> None:
        """Answers, unless an answer is under way already, and closes."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            error.request_id = uuid.uuid4().hex
            status, headers, body = render_error(error)
            if isinstance(error, MethodNotAllowed):
                headers.append(("allow", ", ".join(METHODS)))
            took = (self.loop.time() - self._began) * 1000
            headers += [
                ("server-timing", f"total;dur={took:.2f}"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            head = "".join(f"{name}: {value}\r\n" for name, value in headers)
            self.metrics.refused(status)
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


def _is_of_the_first_age(data: bytes) -> bool:
    """Whether a request's first line is there and names no version, after which no headers would come."""
    line, end, _ = data.lstrip(b"\r\n").partition(b"\n")
    return bool(end) and line.startswith(b"GET ") and b" HTTP/" not in line


def _meaning_of(stopped: BaseException | None, data: bytes) -> RemoteVAEError:
    """What made the parser stop."""
    if isinstance(stopped, httptools.HttpParserInvalidMethodError) and _METHOD.match(data):
        return UnknownMethod("the request's method is not one of HTTP's; expected GET, HEAD or POST", allowed=METHODS)
    if stopped is not None and "HTTP version" in str(stopped):
        return _wrong_version()
    return MalformedRequest("this is not a valid HTTP/1.1 request")


def _wrong_version() -> UnsupportedVersion:
    return UnsupportedVersion("this version of HTTP is not spoken here; expected HTTP/1.1")
