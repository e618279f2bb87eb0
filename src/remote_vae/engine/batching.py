"""Which waiting jobs run together.

Whether a batch gives each of its jobs the bits that it gets alone, and sooner, depends on the device, the library's
choice of kernels and the size; on a CPU its jobs run side by side, a core for each. So each kind of batch is tried
once, both ways: the callers get what their jobs give alone, and the replica says whether running together is as exact
and faster. Until then, and where not, every job runs alone. `benchmarks/batching.py` shows the same by size.
"""

from collections.abc import Hashable
from enum import StrEnum
from typing import Final

from remote_vae.engine.job import DecodeJob, Job

SIZES: Final = (8, 4, 2)  # of batches; few, because each is tried by itself
MOST_KINDS: Final = 256  # that are remembered, before all are forgotten and tried again


class Way(StrEnum):
    """How the jobs of a batch are run: one by one, at once, or both to compare."""

    ALONE = "alone"
    TOGETHER = "together"
    TRIAL = "trial"


class Batching:
    """What has been learnt about running together. `most_pixels` is what a batch may have in all."""

    def __init__(self, most_pixels: int) -> None:
        self._most_pixels = most_pixels
        self._verdicts: dict[Hashable, bool] = {}

    def size(self, job: Job, waiting: int) -> int:
        """Of the batch that this job goes in when as many of its kind wait, itself counted."""
        kind = kind_of(job)
        if kind is None or self._verdicts.get(kind, True) is False:
            return 1
        most = min(waiting, self._most_pixels // job.pixels)
        return next((size for size in SIZES if size <= most), 1)

    def way(self, jobs: list[Job]) -> Way:
        """Of jobs of one kind."""
        if len(jobs) == 1:
            return Way.ALONE
        known = (kind_of(jobs[0]), len(jobs)) in self._verdicts
        return Way.TOGETHER if known else Way.TRIAL

    def learn(self, jobs: list[Job], *, pays: bool) -> None:
        """What a trial showed; one that failed speaks against every size of batch."""
        kind = kind_of(jobs[0])
        if len(self._verdicts) >= MOST_KINDS:
            self._verdicts.clear()
        if pays:
            self._verdicts[kind, len(jobs)] = True
        else:
            self._verdicts[kind] = False


def kind_of(job: Job) -> Hashable | None:
    """What jobs must have in common to run together; None for one that always runs alone.

    A picture's batch axis must be the first that travels. Videos are large enough alone.
    """
    if not isinstance(job, DecodeJob) or not job.fit.pattern.startswith("b ") or "f" in job.fit.sizes:
        return None
    if job.output == "first" and job.fit.batch > 1:
        return None
    sizes = tuple(sorted(job.fit.sizes.items()))
    return (job.latent.dtype, job.latent.shape, sizes, job.own_scaling, job.given, job.plan, job.output)
