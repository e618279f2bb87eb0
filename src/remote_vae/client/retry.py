"""When to try again, and after how long; decides only, so that sync and async share it and sleep themselves.

Decoding and encoding leave nothing behind on the server, so sending a request twice does no harm.
"""

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from remote_vae.client.exchange import Deadline, Failure, Outcome

FIRST_PAUSE: Final = 0.5  # seconds, doubled for every further try
LONGEST_PAUSE: Final = 8.0
LONGEST_RETRY_AFTER: Final = 60.0
RETRIED_STATUSES: Final = (429, 503)


class Tries:
    """The tries of one call, all within one time budget; *units*: seconds."""

    def __init__(self, *, most: int, budget: float) -> None:
        self.deadline = Deadline.after(budget)
        self._most = most
        self._done = 0

    def pause_after(self, outcome: Outcome) -> float | None:
        """How long to wait before the next try; None when the outcome is final."""
        self._done += 1
        if self._done >= self._most or not _may_pass(outcome):
            return None
        asked = None if isinstance(outcome, Failure) else retry_after(outcome.headers)
        pause = self._backoff() if asked is None else asked
        if asked is not None and asked > LONGEST_RETRY_AFTER:
            return None
        return pause if pause < self.deadline.left else None

    def _backoff(self) -> float:
        longest: float = min(FIRST_PAUSE * 2 ** (self._done - 1), LONGEST_PAUSE)
        return random.uniform(longest / 2, longest)


def _may_pass(outcome: Outcome) -> bool:
    return outcome.passing if isinstance(outcome, Failure) else outcome.status in RETRIED_STATUSES


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, from a number or an HTTP date; None when it asks nothing readable."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal() and len(text) <= 9:
        return float(text)
    at = _read_date(text)
    if at is None:
        return None
    # The server's own clock, where it tells the time, so that a wrong clock on either side does no harm.
    now = _read_date(headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (at - now).total_seconds())


def _read_date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
