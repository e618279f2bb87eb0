"""Decides if a job is accepted, by its cost and that of the jobs already accepted. A refusal says when to retry."""

import math
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, TypeVar

from remote_vae.engine.job import Job
from remote_vae.errors import Overloaded, RemoteVAEError, TooManyRequests

K = TypeVar("K")

LONGEST_RETRY: Final = 60  # seconds
FADING: Final = 0.9  # with every new measurement, the weight of the older ones is multiplied by this
STRETCH: Final = 4  # up to so many times the pixels, a job larger than those measured is expected to take longer


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that the engine accepts.

    *Units*: unfinished jobs of one model, and their output pixels; unsent bytes of the replies of all models; the
    fraction of each of these limits that one client may use.
    """

    jobs: int = 64
    pixels: int = 2**28
    reply_bytes: int = 2**30
    client_share: float = 0.5


@dataclass(slots=True)
class Measured:
    """Sums over the jobs of about one size, the older ones with less weight, and the last job's seconds per pixel."""

    pixels: float = 0.0
    seconds: float = 0.0
    jobs: float = 0.0
    last: float = 0.0

    def note(self, pixels: int, seconds: float) -> None:
        self.pixels = FADING * self.pixels + pixels
        self.seconds = FADING * self.seconds + seconds
        self.jobs = FADING * self.jobs + 1
        self.last = seconds / pixels

    @property
    def pace(self) -> float:
        """Seconds per pixel. One slow job among fast ones, be it the last or an earlier one, does not count."""
        return min(self.seconds / self.pixels, self.last)


class Pace:
    """The recent speed of one model, by the size of its jobs: a small job takes longer for each of its pixels.

    If no job of a size has been measured, the expected time is too short rather than too long, because a job that is
    refused for nothing is worse than one that is late.
    """

    def __init__(self) -> None:
        self._measured: dict[int, Measured] = {}  # by the number of bits of the number of pixels
        self.replicas = 1

    def note(self, pixels: int, seconds: float) -> None:
        self._measured.setdefault(pixels.bit_length(), Measured()).note(pixels, seconds)

    def seconds(self, pixels: int) -> float:
        """The expected time of a job, divided by the number of replicas; 0 before the first measurement."""
        size = pixels.bit_length()
        smaller = max((found for found in self._measured if found <= size), default=None)
        larger = min((found for found in self._measured if found > size), default=None)
        expected = 0.0
        if smaller is not None:
            one = self._measured[smaller]
            expected = one.pace * min(pixels, STRETCH * one.pixels / one.jobs)
        if larger is not None and smaller != size:
            expected = max(expected, self._measured[larger].pace * pixels)
        return expected / self.replicas


@dataclass(slots=True)
class InHand:
    """The unfinished jobs of one model."""

    jobs: int = 0
    pixels: int = 0
    sizes: Counter[int] = field(default_factory=Counter)  # the number of jobs by their pixels
    client_jobs: Counter[str] = field(default_factory=Counter)
    client_pixels: Counter[str] = field(default_factory=Counter)
    pace: Pace = field(default_factory=Pace)

    @property
    def seconds(self) -> float:
        """The expected time until all of these jobs are done."""
        return sum(count * self.pace.seconds(pixels) for pixels, count in self.sizes.items())


class Admission:
    """Counts the accepted jobs. An idle model accepts any job; otherwise a job above a limit could never run."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._in_hand: dict[str, InHand] = {}
        self._replies: Counter[str | None] = Counter()  # bytes that are not sent yet, by client
        self.permits = 0

    @property
    def empty(self) -> bool:
        """No job is in hand and every reply has been sent."""
        return self.permits == 0

    @property
    def reply_bytes(self) -> int:
        """The unsent bytes of all replies. One client's bytes count up to its share, so that it harms nobody else."""
        share = self._limits.client_share * self._limits.reply_bytes
        return sum(count if name is None else min(count, int(share)) for name, count in self._replies.items())

    def count_reply(self, client: str | None, nbytes: int) -> None:
        _add(self._replies, client, nbytes)

    def of(self, model: str) -> InHand:
        return self._in_hand.setdefault(model, InHand())

    def check(
        self, model: str, *, pixels: int = 1, reply_bytes: int = 0, client: str | None, seconds: float | None = None
    ) -> None:
        """`seconds` is how long the client will wait. *Raises* TooManyRequests, Overloaded."""
        held, limits, unsent = self.of(model), self._limits, self.reply_bytes
        if not held.jobs and not unsent:
            return
        wait = held.seconds
        if held.jobs >= limits.jobs:
            raise _later(Overloaded, f"{held.jobs} requests wait for model {model!r}; try again later", wait)
        if held.jobs and held.pixels + pixels > limits.pixels:
            raise _later(Overloaded, f"{held.pixels} pixels wait for model {model!r}; try again later", wait)
        if unsent and unsent + reply_bytes > limits.reply_bytes:
            raise _later(Overloaded, f"{unsent} bytes of replies wait to be sent; try again later", wait)
        if seconds is not None and wait > seconds:
            text = f"model {model!r} has work for {wait:.0f} s; this request waits {seconds:g} s at most"
            raise _later(Overloaded, text, wait - seconds)
        if client is not None:
            self._check_share(model, client, pixels=pixels, reply_bytes=reply_bytes)

    def _check_share(self, model: str, client: str, *, pixels: int, reply_bytes: int) -> None:
        held, share, unsent = self.of(model), self._limits.client_share, self._replies[client]
        if unsent and unsent + reply_bytes > share * self._limits.reply_bytes:
            text = f"{unsent} bytes of your replies wait until you read them; that is your share"
            raise _later(TooManyRequests, text, 1)
        if held.client_jobs[client]:
            jobs, mine = held.client_jobs[client] + 1, held.client_pixels[client] + pixels
            if jobs > max(1, share * self._limits.jobs) or mine > share * self._limits.pixels:
                text = f"{held.client_jobs[client]} of your requests wait for model {model!r}; that is your share"
                raise _later(TooManyRequests, text, held.seconds * held.client_pixels[client] / held.pixels)

    def enter(self, model: str, job: Job, *, client: str | None, seconds: float | None = None) -> "Permit":
        """*Raises* what `check` raises."""
        self.check(model, pixels=job.pixels, reply_bytes=job.reply_bytes, client=client, seconds=seconds)
        return Permit(self, model, job, client=client, seconds=seconds)


class Permit:
    """An accepted job. Its work counts until `worked`, its reply until `release`; both may be called repeatedly.

    As a context it is released if an exception leaves it. Otherwise the code that sends the reply releases it.
    """

    def __init__(
        self, admission: Admission, model: str, job: Job, *, client: str | None, seconds: float | None
    ) -> None:
        self.model, self.job, self.client, self.seconds = model, job, client, seconds
        self._admission, self._held = admission, admission.of(model)
        self._working = self._replying = True
        self._count(+1)
        admission.permits += 1
        admission.count_reply(client, job.reply_bytes)

    def worked(self) -> None:
        if self._working:
            self._working = False
            self._count(-1)

    def release(self) -> None:
        self.worked()
        if self._replying:
            self._replying = False
            self._admission.permits -= 1
            self._admission.count_reply(self.client, -self.job.reply_bytes)

    def _count(self, sign: int) -> None:
        self._held.jobs += sign
        self._held.pixels += sign * self.job.pixels
        _add(self._held.sizes, self.job.pixels, sign)
        if self.client is not None:
            _add(self._held.client_jobs, self.client, sign)
            _add(self._held.client_pixels, self.client, sign * self.job.pixels)

    def __enter__(self) -> "Permit":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.release()


def _add(counter: Counter[K], key: K, amount: int) -> None:
    """Adds, and forgets a count of zero, so that a counter does not grow with the clients that have ever come."""
    counter[key] += amount
    if not counter[key]:
        del counter[key]


def _later(kind: type[RemoteVAEError], text: str, seconds: float) -> RemoteVAEError:
    return kind(text, retry_after=min(LONGEST_RETRY, max(1, math.ceil(seconds))))
