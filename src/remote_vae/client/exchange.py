"""One HTTP exchange as values: what is sent, what came back, and what went wrong on the way."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import httpx2

from remote_vae.errors import ClientError, ClientTimeout, ConnectionFailed, InvalidReply
from remote_vae.values import clip

CONNECT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The body is bytes, so that it can be sent again."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class HttpReply:
    """Names in `headers` are lower case; the body is writable, so that a tensor can lie on it without a copy."""

    status: int
    headers: Mapping[str, str]
    body: bytearray = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """No reply; `passing` when another try may end better."""

    error: ClientError
    passing: bool


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
        """Seconds; zero or less when it is over."""
        return self.at - time.monotonic()

    def timeouts(self) -> httpx2.Timeout:
        """For one try: what is left, but less for the connection, so that a dead host does not take it all."""
        left = max(self.left, 0.001)
        return httpx2.Timeout(left, connect=min(left, CONNECT_SECONDS))


class ReplyReader:
    """Collects a reply's body within the limit and the deadline."""

    def __init__(self, response: httpx2.Response, *, limit: int, deadline: Deadline) -> None:
        """*Raises* InvalidReply for a body that is compressed, or announced as longer than the limit."""
        self._status = response.status_code
        self._headers = {name.lower(): value for name, value in response.headers.items()}
        self._body = bytearray()
        self._limit = limit
        self._deadline = deadline
        coding = self._headers.get("content-encoding", "").strip().lower()
        if coding not in ("", "identity"):
            raise InvalidReply(
                f"the reply has content-encoding {clip(coding)!r}, which was not asked for", status=self._status
            )
        length = self._headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise self._too_long()

    def take(self, chunk: bytes) -> None:
        """*Raises* InvalidReply above the limit, ClientTimeout past the deadline."""
        if len(self._body) + len(chunk) > self._limit:
            raise self._too_long()
        if self._deadline.left <= 0:
            raise ClientTimeout(f"the reply was not complete in time; {len(self._body)} bytes had come")
        self._body += chunk

    def reply(self) -> HttpReply:
        return HttpReply(self._status, self._headers, self._body)

    def _too_long(self) -> InvalidReply:
        return InvalidReply(
            f"the reply is longer than {self._limit} bytes; raise max_reply_bytes, or ask for less at a time",
            limit=self._limit,
            status=self._status,
        )


def failure_of(error: httpx2.HTTPError | TimeoutError, *, url: str, in_body: bool) -> Failure:
    """What an error of httpx2 means here; `in_body` when the reply's head had come."""
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
        case _:
            what, hint = ("broke off", "") if in_body else ("failed", "; does the server run, and is that its address?")
            return Failure(ConnectionFailed(f"the connection to {host} {what}: {text}{hint}", host=host), passing=True)


def settle(outcome: Outcome) -> HttpReply:
    """The reply, which has status 200 or one of an error; *raises* the failure, or InvalidReply for a redirect."""
    if isinstance(outcome, Failure):
        raise outcome.error
    if outcome.status == 200 or outcome.status >= 400:
        return outcome
    if 300 <= outcome.status < 400:
        location = outcome.headers.get("location", "")
        try:
            target = urlsplit(location).hostname or "another path of the same host"
        except ValueError:
            target = "an unreadable address"
        raise InvalidReply(
            f"the server answered {outcome.status} and sends elsewhere, to {clip(target, 100)}; redirects are not "
            "followed, so give the final address as the endpoint",
            status=outcome.status,
        )
    raise InvalidReply(f"the server answered {outcome.status}; expected 200 or an error", status=outcome.status)
