"""A call: a request that is sent again, within bounds, until there is a reply.

Decoding and encoding change nothing on the server, so sending a request twice does no harm.
"""

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

import httpx2

from remote_vae.client.exchange import (
    Deadline,
    Failure,
    HttpReply,
    HttpRequest,
    Outcome,
    Poll,
    ReplyReader,
    failure_of,
    nothing,
    settle,
)
from remote_vae.client.network import Network
from remote_vae.errors import ClientError, ConnectionFailed, InvalidValue, NotReady
from remote_vae.python310 import UTC

LARGEST_REPLY: Final = 2**31  # bytes: the raw floats of a common video are 1.4 GB
LONGEST_TIMEOUT: Final = 86400.0
PROBE_SECONDS: Final = 10.0
FIRST_PAUSE: Final = 0.5  # seconds, doubled for every further try
LONGEST_PAUSE: Final = 8.0
LONGEST_RETRY_AFTER: Final = 60.0
REFUSED: Final = (429, 503)  # the server says that a later try may succeed
BAD_GATEWAY, GATEWAY_TIMEOUT = 502, 504
LATE_SECONDS: Final = 5.0  # a proxy that waited so long may have waited for a whole decode
MOST_GATEWAY_TIMEOUTS: Final = 3  # of late ones
FEW: Final = 3  # tries of a call, if nothing says that the server only restarts
MOST_HANG_UPS: Final = 10  # within some 40 seconds: what always hangs up is not restarting


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that one call may take: seconds over all its tries, tries, and bytes of the reply.

    `tries` None stands for a few, and for any number within the time while the server restarts.
    *Raises* InvalidValue for bounds that cannot be kept.
    """

    timeout: float = 300.0
    tries: int | None = None
    max_reply_bytes: int = LARGEST_REPLY

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise InvalidValue(f"timeout={self.timeout} must be above 0 and at most {LONGEST_TIMEOUT:.0f} seconds")
        if self.tries is not None and self.tries < 1:
            raise InvalidValue(f"retries={self.tries} must be at least 1: the first try counts")
        if self.max_reply_bytes < 1:
            raise InvalidValue(f"max_reply_bytes={self.max_reply_bytes} must be at least 1")

    def of_probe(self) -> "Bounds":
        """The bounds of a question with an answer that is only useful if it comes soon."""
        return replace(self, timeout=min(self.timeout, PROBE_SECONDS), tries=1)


async def send(network: Network, request: HttpRequest, bounds: Bounds, poll: Poll = nothing) -> HttpReply:
    """The reply, which has status 200 or that of an error; *raises* ConnectionFailed, ClientTimeout, InvalidReply."""
    tries = Tries(most=bounds.tries, budget=bounds.timeout, known=network.answered)
    while True:
        reader = ReplyReader(
            limit=bounds.max_reply_bytes, deadline=tries.deadline, request_id=request.request_id, poll=poll
        )
        outcome = await _attempt(network, request, reader)
        network.answered |= not isinstance(outcome, Failure)
        pause = tries.pause_after(outcome)
        if pause is None:
            return settle(outcome)
        await network.sleep(pause, poll)


async def _attempt(network: Network, request: HttpRequest, reader: ReplyReader) -> Outcome:
    try:
        await network.exchange(request, reader)
    except ClientError as exc:
        return Failure(exc, passing=reader.foreign)
    except (httpx2.HTTPError, TimeoutError) as exc:
        return failure_of(exc, url=request.url, in_body=reader.reply is not None)
    assert reader.reply is not None, "an exchange without an error has a reply"
    return reader.reply


class Tries:
    """The tries of one call, all within one budget of time; *units*: seconds.

    `known` if the server has answered this client before: then a lost connection means a restart, not a wrong address.
    """

    def __init__(self, *, most: int | None, budget: float, known: bool = False) -> None:
        self.deadline = Deadline.after(budget)
        self._most = most
        self._done = 0
        self._late = 0  # gateway time-outs
        self._hang_ups = 0
        self._known, self._restarts = known, False
        self._began = self.deadline.left

    def pause_after(self, outcome: Outcome) -> float | None:
        """How long to wait before the next try; None if the outcome is final."""
        self._done += 1
        if not self._may_pass(outcome) or self._done >= self._limit():
            return None
        asked = None if isinstance(outcome, Failure) else retry_after(outcome.headers)
        if asked is not None and asked > LONGEST_RETRY_AFTER:
            return None
        # The longer of the two, so that a server that always says "in a second" is asked less and less often.
        pause = max(asked or 0.0, self._backoff())
        self._began = self.deadline.left - pause
        return pause if self._began > 0 else None

    def _limit(self) -> float:
        if self._most is not None:
            return self._most
        return math.inf if self._restarts and self._hang_ups < MOST_HANG_UPS else FEW

    def _may_pass(self, outcome: Outcome) -> bool:
        if isinstance(outcome, Failure):
            self._restarts |= outcome.hung_up or (self._known and isinstance(outcome.error, ConnectionFailed))
            self._hang_ups += outcome.hung_up
            return outcome.passing
        if outcome.status not in (BAD_GATEWAY, GATEWAY_TIMEOUT):
            self._restarts |= _error_type(outcome) == NotReady.code
            return outcome.status in REFUSED
        if _error_type(outcome) is not None:
            return False
        self._restarts = True
        late = outcome.status == GATEWAY_TIMEOUT and self._began - self.deadline.left >= LATE_SECONDS
        self._late += late
        return not late or self._late < MOST_GATEWAY_TIMEOUTS

    def _backoff(self) -> float:
        longest: float = min(FIRST_PAUSE * 2 ** (self._done - 1), LONGEST_PAUSE)
        return random.uniform(longest / 2, longest)


def _error_type(reply: HttpReply) -> object:
    """The code of the error, if a Remote VAE server wrote it and not a proxy in front of it."""
    if reply.status == 200:
        return None
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError):
        return None
    return document.get("error_type") if isinstance(document, dict) else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, from a number or an HTTP date; None if there is nothing readable."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal() and len(text) <= 9:
        return float(text)
    at = _read_date(text)
    if at is None:
        return None
    # If the server tells its own time, that counts, so that a wrong clock on either side does no harm.
    now = _read_date(headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (at - now).total_seconds())


def _read_date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
