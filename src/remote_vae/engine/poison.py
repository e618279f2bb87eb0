"""Remembers the jobs over which processes died, by a digest, in memory only."""

import hashlib
import json
from collections import OrderedDict
from typing import Final

from remote_vae.engine.job import Job, tensor_of, to_message
from remote_vae.errors import PoisonRequest

MOST_REMEMBERED: Final = 256
DEATHS: Final = 2
DIED: Final = "two processes have died over this request; it is not tried again"


class Poison:
    """Counts the processes of one model that died over a job, until it succeeds."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[bytes, tuple[int, str]] = OrderedDict()

    def check(self, job: Job) -> None:
        """*Raises* PoisonRequest for a job over which two processes have died."""
        if self._deaths:
            count, cause = self._deaths.get(_digest(job), (0, ""))
            if count >= DEATHS:
                raise PoisonRequest(cause)

    def blame(self, job: Job, *, hung_seconds: float | None) -> PoisonRequest | None:
        """Counts one more process that died or hung over this job; returns the error if it is refused from now on."""
        digest = _digest(job)
        count, cause = self._deaths.pop(digest, (0, ""))[0] + 1, DIED if hung_seconds is None else _hung(hung_seconds)
        self._deaths[digest] = count, cause
        if len(self._deaths) > MOST_REMEMBERED:
            self._deaths.popitem(last=False)
        return PoisonRequest(cause) if count >= DEATHS else None

    def acquit(self, job: Job) -> None:
        if self._deaths:
            self._deaths.pop(_digest(job), None)


def _hung(seconds: float) -> str:
    return (
        f"two processes have been replaced over this request, the last one because it made no progress for {seconds:g} "
        "s; it is not tried again. If the model is only slow, serve it with a larger --hang-seconds"
    )


def _digest(job: Job) -> bytes:
    """A digest of everything that determines a job; the content cannot be told from it."""
    found = hashlib.blake2b(json.dumps(to_message(job), default=dict).encode(), digest_size=16)
    found.update(tensor_of(job).buffer)
    return found.digest()
