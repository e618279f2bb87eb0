"""One TCP connection: uvicorn's HTTP/1.1, with bounds on the size and the time of what comes before a body.

What is refused here never reaches the application, and is answered in the same JSON form as every other error. The
class overrides private methods of uvicorn, so pyproject.toml bounds uvicorn's version.
"""

import asyncio
import re
import sys
import uuid
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Final

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
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
from remote_vae.server.browser import HARMLESS
from remote_vae.server.metrics import Metrics
from remote_vae.server.settings import Settings
from remote_vae.server.timer import Timer

METHODS: Final = ["GET", "HEAD", "POST"]
SLICE: Final = 16_384  # bytes that the parser gets at once while what is not body is counted
LEAST_SLICE: Final = 1024  # if the end of a chunked body may be in a slice
MOST_AHEAD: Final = 65_536  # bytes that are read behind a request which is not answered yet
END_OF_HEAD: Final = b"\r\n\r\n"
BLANK: Final = re.compile(rb"[\r\n]*")  # what may come before a request
MOST_CHUNKS: Final = 65_536  # of one body
CHUNK_BYTES: Final = 16  # around each chunk, which are not counted: its size and its line ends
METHOD: Final = re.compile(rb"(\r\n)*[A-Z]{1,32} /")  # a first line of the right form
HTTP_09: Final = re.compile(rb"[\r\n]*GET (?![^\n]* HTTP/)[^\n]*\n")  # a first line after which no headers come


class Part(Enum):
    """What the client sends next."""

    NOTHING = auto()  # it may begin a request
    HEAD = auto()
    CHUNKS = auto()
    BODY = auto()  # of a known length, so that nothing about it has to be counted


class Flow(FlowControl):
    """Does not read on while enough has been read ahead, whatever uvicorn's parts ask for."""

    full = False

    def resume_reading(self) -> None:
        if not self.full:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """Counts what comes that is not body, and closes when nothing is read or written in time.

    A request is taken apart only when the request before it has been answered; until then its bytes stay as they are,
    and only a few of them are read. Otherwise one connection that sends requests without reading the answers could
    make the server hold a hundred thousand of them.
    """

    flow: Flow

    def __init__(self, settings: Settings, metrics: Metrics, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.settings, self.metrics = settings, metrics
        self._part = Part.NOTHING
        self._began = self.loop.time()  # of the request
        self._extra_bytes = self._chunks = 0  # of the head or the chunked body: bytes that are not body, and chunks
        self._body_left = 0  # bytes of a body of a known length that have not come
        self._fed = self._ahead = b""  # what the parser got last, and what has come and not been taken apart
        self._at = 0  # where in `_ahead` the parser goes on
        self._refusal: RemoteVAEError | None = None  # why a callback has stopped the parser
        self._reading, self._writing = Timer(), Timer()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport)
        self._expect_head_within(self.settings.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading.stop()
        self._writing.stop()
        self._ahead = b""
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing.start(self.settings.reply_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if not self.transport.is_closing():
            self._writing.stop()
        super().resume_writing()

    def _close(self) -> None:
        """Closes when the rest has been sent; a client that does not read it could keep the connection for ever."""
        self.transport.close()
        self._writing.start(self.settings.reply_seconds, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        self._ahead += data
        self._take_apart()

    def _take_apart(self) -> None:
        """Feeds the parser until a request waits for its answer, and then reads no more than `MOST_AHEAD`."""
        while self._at < len(self._ahead) and not self.transport.is_closing() and not self._unanswered:
            if self._part is Part.NOTHING and HTTP_09.match(self._ahead, self._at):
                self._refuse(MalformedRequest("the request's first line has no version of HTTP; expected HTTP/1.1"))
                return
            start, self._at = self._at, min(self._slice_end(), len(self._ahead))
            self._fed = self._ahead[start : self._at]
            self._extra_bytes += len(self._fed)
            super().data_received(self._fed)
            self._check_extra_bytes()
        self._fed, self._ahead, self._at = b"", self._ahead[self._at :], 0  # an idle connection holds no bytes
        self.flow.full = len(self._ahead) > MOST_AHEAD
        if self.flow.full:
            self.flow.pause_reading()

    @property
    def _unanswered(self) -> bool:
        """The last request is whole and has no answer yet."""
        return self._part is Part.NOTHING and self.cycle is not None and not self.cycle.response_complete

    def _slice_end(self) -> int:
        """Where to cut, so that the parser sees the end of one request and next to nothing of the following ones."""
        if self._part is Part.BODY:
            return self._at + max(self._body_left, 1)
        start, end = self._at, self._at + SLICE
        if self._part is Part.NOTHING and (blank := BLANK.match(self._ahead, start, end)) is not None:
            start = blank.end()
        found = self._ahead.find(END_OF_HEAD, start, end)
        if found < 0:
            return end
        # The same bytes may stand in each chunk, and a slice for each of them would take too long.
        return max(found + len(END_OF_HEAD), start + LEAST_SLICE if self._part is Part.CHUNKS else 0)

    def _check_extra_bytes(self) -> None:
        """Bounds what no callback of the parser shows: a line without an end, the extensions of chunks."""
        limit = self.settings.max_head_bytes
        if self._part is Part.HEAD and self._extra_bytes > limit:
            self._refuse(self._too_large())
        elif self._part is Part.CHUNKS and self._extra_bytes - CHUNK_BYTES * self._chunks > limit:
            self._refuse(MalformedRequest(f"the chunks' extensions and trailers are over {limit} bytes", limit=limit))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._part, self._began = Part.HEAD, self.loop.time()
        self._extra_bytes = self._chunks = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._part is Part.HEAD:  # a trailer must not pass for the header that a proxy took out or set
            super().on_header(name, value)
        if len(self.headers) > self.settings.max_headers:
            raise self._too_large()  # before the others are taken apart

    def on_headers_complete(self) -> None:
        self._check_head()
        self._reading.stop()
        if self.parser.should_upgrade():
            return  # the parser stops here, and uvicorn calls `_unsupported_upgrade_warning`
        chunked = any(name == b"transfer-encoding" for name, _ in self.headers)
        self._part, self._extra_bytes = Part.CHUNKS if chunked else Part.BODY, 0
        self._body_left = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """Called by the parser."""
        self._chunks += 1
        if self._chunks > MOST_CHUNKS:
            raise MalformedRequest(f"the body has over {MOST_CHUNKS} chunks; send larger ones", limit=MOST_CHUNKS)

    def on_body(self, body: bytes) -> None:
        self._extra_bytes -= len(body)
        self._body_left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._part is not Part.HEAD:  # otherwise it asks for another protocol, and is parsed again
            self._part = Part.NOTHING
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Called by uvicorn if a request asks for another protocol, in which case the parser does not read its body.

        A server may ignore that wish and must then serve the request (RFC 9110, 7.8), so it is parsed again without.
        """
        stopped = sys.exception()
        rest = self._fed[stopped.args[0] :] if isinstance(stopped, httptools.HttpParserUpgrade) else b""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self._ahead, self._at = b"\r\n".join(lines) + END_OF_HEAD + rest + self._ahead[self._at :], 0

    def on_response_complete(self) -> None:
        another = bool(self.pipeline)
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()
        elif not another:
            # A body that was refused unread is still read away: otherwise its sender would never see the answer.
            unread = self._part in (Part.CHUNKS, Part.BODY)
            self._expect_head_within(self.settings.body_seconds if unread else self.settings.head_seconds)
            self._take_apart()
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when its parser has stopped, be it at an error of a callback above."""
        stopped = sys.exception()
        if stopped is not None and isinstance(stopped.__context__, RemoteVAEError):
            self._refuse(stopped.__context__)
        elif isinstance(stopped, httptools.HttpParserInvalidMethodError) and METHOD.match(self._fed):
            text = "the request's method is not one of HTTP's; expected GET, HEAD or POST"
            self._refuse(UnknownMethod(text, allowed=METHODS))
        elif "HTTP version" in str(stopped):
            self._refuse(_wrong_version())
        else:
            self._refuse(MalformedRequest("this is not a valid HTTP/1.1 request"))

    def _check_head(self) -> None:
        version, method = self.parser.get_http_version(), self.parser.get_method()
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self.settings.max_head_bytes:
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
        url_bytes, head_bytes, headers = settings.max_query_bytes, settings.max_head_bytes, settings.max_headers
        if len(self.url) > url_bytes:
            return UriTooLong(f"the URL is over the limit of {url_bytes} bytes", limit=url_bytes)
        text = f"the URL and headers are over the limit of {head_bytes} bytes and {headers} headers"
        return HeadTooLarge(text, max_headers=headers, limit=head_bytes)

    def _refuse(self, error: RemoteVAEError) -> None:
        """Answers, unless an answer is under way already, and closes."""
        if self.transport.is_closing():
            return
        waiting = self.cycle is not None and not self.cycle.response_complete
        if waiting and self._part in (Part.NOTHING, Part.HEAD):
            # The request before this one is whole and will be answered. What follows cannot be found any more.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if not (waiting and self.cycle.response_started):
            self.transport.write(self._render(error))
            self.metrics.refused(error.status)
        self._close()

    def _render(self, error: RemoteVAEError) -> bytes:
        error.request_id = uuid.uuid4().hex
        status, headers, body = render_error(error)
        if isinstance(error, MethodNotAllowed):
            headers.append(("allow", ", ".join(METHODS)))
        headers.append(("server-timing", f"total;dur={(self.loop.time() - self._began) * 1000:.2f}"))
        headers += [*HARMLESS.items(), ("content-length", str(len(body))), ("connection", "close")]
        head = "".join(f"{name}: {value}\r\n" for name, value in headers)
        return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{head}\r\n".encode() + body

    def _expect_head_within(self, seconds: float) -> None:
        self._reading.start(seconds, self._head_is_late, seconds)

    def _head_is_late(self, seconds: float) -> None:
        if self._part is Part.HEAD:
            self._refuse(RequestTimeout(f"the headers did not arrive within {seconds:g} s", seconds=seconds))
        else:
            self._close()


def _wrong_version() -> UnsupportedVersion:
    return UnsupportedVersion("this version of HTTP is not spoken here; expected HTTP/1.1")
