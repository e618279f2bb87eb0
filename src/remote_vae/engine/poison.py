"""Jobs that kill: remembered by a digest, in memory only."""

import hashlib
import json
from collections import OrderedDict
from typing import Final

from remote_vae.engine.job import Job, tensor_of, to_message
from remote_vae.errors import PoisonRequest

MOST_REMEMBERED: Final = 256
DEATHS: Final = 2


class Poison:
    """Counts the processes of one model that died over a job, until it succeeds."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[bytes, int] = OrderedDict()

    def check(self, job: Job) -> None:
        """*Raises* PoisonRequest for a job over which two processes have died."""
        if self._deaths and self._deaths.get(_digest(job), 0) >= DEATHS:
            raise poisoned()

    def blame(self, job: Job) -> int:
        """One more process has died over it; gives how many have."""
        digest = _digest(job)
        deaths = self._deaths.pop(digest, 0) + 1
        self._deaths[digest] = deaths
        if len(self._deaths) > MOST_REMEMBERED:
            self._deaths.popitem(last=False)
        return deaths

    def acquit(self, job: Job) -> None:
        if self._deaths:
            self._deaths.pop(_digest(job), None)


def poisoned() -> PoisonRequest:
    return PoisonRequest("two processes have died over this request; it is not tried again")


def _digest(job: Job) -> bytes:
    """Of all that decides what a job does; tells nothing about what is in it."""
    found = hashlib.blake2b(json.dumps(to_message(job), default=dict).encode(), digest_size=16)
    found.update(tensor_of(job).buffer)
    return found.digest()
