"""Decides if a job is accepted, by its cost and that of the jobs already accepted. A refusal says when to retry."""

import math
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from remote_vae.engine.job import Job
from remote_vae.errors import Overloaded, RemoteVAEError, TooManyRequests

LONGEST_RETRY: Final = 60  # seconds
FADING: Final = 0.9  # with every new measurement, the weight of the older ones is multiplied by this


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


class Pace:
    """The recent speed of one model: the output pixels per second of all its replicas."""

    def __init__(self) -> None:
        self._pixels = self._seconds = 0.0
        self.replicas = 1

    def note(self, pixels: int, seconds: float) -> None:
        self._pixels = FADING * self._pixels + pixels
        self._seconds = FADING * self._seconds + seconds

    def seconds(self, pixels: int) -> float:
        """The expected time for a number of pixels; 0 before the first measurement."""
        return pixels * self._seconds / self._pixels / self.replicas if self._pixels else 0.0


@dataclass(slots=True)
class InHand:
    """The unfinished jobs of one model."""

    jobs: int = 0
    pixels: int = 0
    client_jobs: Counter[str] = field(default_factory=Counter)
    client_pixels: Counter[str] = field(default_factory=Counter)
    pace: Pace = field(default_factory=Pace)


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
        self._replies[client] += nbytes
        if not self._replies[client]:
            del self._replies[client]

    def of(self, model: str) -> InHand:
        return self._in_hand.setdefault(model, InHand())

    def check(
        self, model: str, *, pixels: int = 1, reply_bytes: int = 0, client: str | None, seconds: float | None = None
    ) -> None:
        """`seconds` is how long the client will wait. *Raises* TooManyRequests, Overloaded."""
        held, limits, unsent = self.of(model), self._limits, self.reply_bytes
        if not held.jobs and not unsent:
            return
        wait = held.pace.seconds(held.pixels)
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
                raise _later(TooManyRequests, text, held.pace.seconds(held.client_pixels[client]))

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
        if self.client is not None:
            for counter, amount in ((self._held.client_jobs, 1), (self._held.client_pixels, self.job.pixels)):
                counter[self.client] += sign * amount
                if not counter[self.client]:
                    del counter[self.client]

    def __enter__(self) -> "Permit":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.release()


def _later(kind: type[RemoteVAEError], text: str, seconds: float) -> RemoteVAEError:
    return kind(text, retry_after=min(LONGEST_RETRY, max(1, math.ceil(seconds))))
