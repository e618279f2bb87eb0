"""One HTTP exchange as values: the request, the reply, and the error if there is no reply."""

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, TypeAlias
from urllib.parse import urlsplit

import httpx2

from remote_vae.errors import ClientError, ClientTimeout, ConnectionFailed, InvalidReply
from remote_vae.values import clip

CONNECT_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.2
ID_HEADERS: Final = ("x-request-id", "x-call-id")  # the second one is for proxies, some of which replace the first
NO_TLS: Final = ("does not speak TLS", "expected a URL that begins with http:// for this server")
# What an error of TLS has in its text -> what is wrong with the server, and what to do.
OF_TLS: Final = {
    "CERTIFICATE_VERIFY_FAILED": (
        "has a certificate that is not trusted here",
        "set SSL_CERT_FILE or ca_file to the PEM file of its authority, if you trust it",
    ),
    "WRONG_VERSION_NUMBER": NO_TLS,  # OpenSSL 3.0, for a reply in plain HTTP
    "RECORD_LAYER_FAILURE": NO_TLS,  # later OpenSSL
}

Poll: TypeAlias = Callable[[], None]
"""Is called while a blocking call waits, at least once in `POLL_SECONDS`; what it raises ends the call."""


def nothing() -> None:
    """The poll of a call that is not watched."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The body is bytes, so that it can be sent again."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)
    request_id: str = ""  # of which a reply must be, if there is one

    def numbered(self) -> "HttpRequest":
        """The same request with an id that no other request has."""
        return replace(self, request_id=uuid.uuid4().hex)


@dataclass(frozen=True, slots=True)
class HttpReply:
    """Names in `headers` are lower case; the body is writable, so that a tensor can use it without a copy."""

    status: int
    headers: Mapping[str, str]
    body: bytearray = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """No reply; `passing` if another try may succeed. If `hung_up`, something listened there and hung up."""

    error: ClientError
    passing: bool
    hung_up: bool = False


Outcome = HttpReply | Failure


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock at which a call must be over."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        return cls(time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds; zero or less if the deadline has passed."""
        return self.at - time.monotonic()

    def timeouts(self) -> httpx2.Timeout:
        """For one try: the time left, but less for the connection, so that a dead host does not use up all of it."""
        left = max(self.left, 0.001)
        return httpx2.Timeout(left, connect=min(left, CONNECT_SECONDS))


class Reader(Protocol):
    """Takes a reply as it comes."""

    deadline: Deadline
    poll: Poll

    def begin(self, response: httpx2.Response) -> None:
        """Takes the head."""

    def take(self, chunk: bytes) -> None:
        """Takes a piece of the body."""


class ReplyReader:
    """Collects the reply to the request with an id, within the limit on its bytes and the deadline.

    `foreign` if the reply was one to another request.
    """

    def __init__(self, *, limit: int, deadline: Deadline, request_id: str = "", poll: Poll = nothing) -> None:
        self.deadline, self.poll = deadline, poll
        self.reply: HttpReply | None = None  # from the head on
        self.foreign = False
        self._limit = limit
        self._request_id = request_id

    def begin(self, response: httpx2.Response) -> None:
        """*Raises* InvalidReply if the body is compressed, too long by its announcement, or for another request."""
        headers = {name.lower(): value for name, value in response.headers.items()}
        self.reply = HttpReply(response.status_code, headers, bytearray())
        self._check_id(self.reply)
        coding, length = headers.get("content-encoding", "").strip().lower(), headers.get("content-length", "")
        if coding not in ("", "identity"):
            raise InvalidReply(
                f"the reply has content-encoding {clip(coding)!r}, which was not asked for", status=self.reply.status
            )
        self._check(int(length) if length.isdecimal() else 0, self.reply)

    def take(self, chunk: bytes) -> None:
        """*Raises* InvalidReply above the limit, ClientTimeout after the deadline."""
        assert self.reply is not None, "begin comes first"
        self._check(len(self.reply.body) + len(chunk), self.reply)
        if self.deadline.left <= 0:
            raise ClientTimeout(f"the reply was not complete in time; {len(self.reply.body)} bytes had come")
        self.reply.body.extend(chunk)

    def _check_id(self, reply: HttpReply) -> None:
        """One id that is right will do: a proxy may write the other one, or an error, of its own."""
        found = [reply.headers[name] for name in ID_HEADERS if name in reply.headers]
        self.foreign = bool(reply.status == 200 and self._request_id and found and self._request_id not in found)
        if self.foreign:
            raise InvalidReply(
                f"the reply is to request {clip(found[0])!r} and not to {self._request_id!r}; does another process use "
                "the connection too?",
                status=reply.status,
            )

    def _check(self, length: int, reply: HttpReply) -> None:
        if length > self._limit:
            raise InvalidReply(
                f"the reply is longer than {self._limit} bytes; raise max_reply_bytes, or ask for less at a time",
                limit=self._limit,
                status=reply.status,
            )


def failure_of(error: httpx2.HTTPError | TimeoutError, *, url: str, in_body: bool) -> Failure:
    """The failure that an error of httpx2 means; `in_body` if the reply's head had come."""
    host = urlsplit(url).netloc
    text = str(error) or type(error).__name__
    match error:
        case httpx2.ConnectTimeout():
            return Failure(ClientTimeout(f"no connection to {host} in time", host=host), passing=True)
        case TimeoutError() | httpx2.TimeoutException():
            what = "the reply was not complete" if in_body else "no reply"
            return Failure(ClientTimeout(f"{what} from {host} within the time-out", host=host), passing=False)
        case httpx2.RemoteProtocolError() if in_body:
            return Failure(InvalidReply(f"the reply from {host} broke off: {text}", host=host), passing=True)
        case httpx2.LocalProtocolError() | httpx2.UnsupportedProtocol():
            return Failure(ConnectionFailed(f"the request to {host} cannot be sent: {text}", host=host), passing=False)
        case httpx2.ConnectError() if found := [OF_TLS[name] for name in OF_TLS if name in text]:
            problem, advice = found[0]
            return Failure(ConnectionFailed(f"{host} {problem}: {text}; {advice}", host=host), passing=False)
        case _:
            # A connection that ends during the upload may do so because of the body, and then always does.
            hung_up = not in_body and isinstance(error, (httpx2.ReadError, httpx2.RemoteProtocolError))
            what, hint = ("broke off", "") if in_body else ("failed", "; does the server run, and is that its address?")
            if hung_up and url.startswith("http:"):
                hint += " A server with TLS needs https://."
            problem = f"the connection to {host} {what}: {text}{hint}"
            return Failure(ConnectionFailed(problem, host=host), passing=True, hung_up=hung_up)


def settle(outcome: Outcome) -> HttpReply:
    """The reply, with status 200 or that of an error; *raises* the failure, or InvalidReply for another status."""
    if isinstance(outcome, Failure):
        raise outcome.error
    if outcome.status == 200 or outcome.status >= 400:
        return outcome
    if not 300 <= outcome.status < 400:
        raise InvalidReply(f"the server answered {outcome.status}; expected 200 or an error", status=outcome.status)
    try:
        target = urlsplit(outcome.headers.get("location", "")).hostname or "another path of the same host"
    except ValueError:
        target = "an unreadable address"
    raise InvalidReply(
        f"the server answered {outcome.status} and sends elsewhere, to {clip(target, 100)}; redirects are not "
        "followed, so give the final address as the endpoint",
        status=outcome.status,
    )
