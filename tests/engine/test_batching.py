"""Running together: only what is alike, only where it was tried, and never with another result."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from remote_vae.core.recipe import Constants
from remote_vae.engine.batching import MOST_KINDS, Batching, Way, kind_of
from remote_vae.engine.job import Block, DecodeJob, EncodeJob, Outcome
from remote_vae.engine.observer import Ran, Silent

from .running import job, run, running

ALIKE = job(side=8)
DIFFERENT: dict[str, dict[str, Any]] = {
    "scaling": {"own_scaling": True},
    "constants": {"given": Constants(0.5, None)},
    "plan": {"plan": "whole"},
    "output": {"output": "uint8"},
    "dtype": {"latent": replace(ALIKE.latent, dtype="float16")},
    "shape": {"latent": replace(ALIKE.latent, shape=(1, 3, 4, 16))},
    "layout": {"fit": replace(ALIKE.fit, sizes={**ALIKE.fit.sizes, "h": 4, "w": 16})},
}


@pytest.mark.parametrize("change", DIFFERENT.values(), ids=DIFFERENT)
def test_what_differs_is_another_kind(change: dict[str, Any]) -> None:
    """Jobs that differ in anything but their values are not of one kind."""
    assert kind_of(ALIKE) == kind_of(job(3.0, side=8))
    assert kind_of(replace(ALIKE, **change)) != kind_of(ALIKE)


def test_what_runs_alone() -> None:
    """Encoding, videos, layouts without a batch axis in front, and the first of several pictures run alone."""
    video = replace(ALIKE, fit=replace(ALIKE.fit, sizes={**ALIKE.fit.sizes, "f": 2}))
    bare = replace(ALIKE, fit=replace(ALIKE.fit, pattern="c h w -> 1 c h w"))
    first = replace(ALIKE, output="first", fit=replace(ALIKE.fit, batch=2))
    encode = EncodeJob(False, None, None, Block("uint8", (1, 8, 8, 3), bytes(192)), "mode", None, 64, 192)
    assert [kind_of(one) for one in (video, bare, first, encode)] == [None] * 4


@pytest.mark.parametrize(
    ("pixels", "waiting", "size"), [(0, 9, 1), (64, 9, 1), (130, 9, 2), (10**6, 7, 4), (512, 9, 8)]
)
def test_size(pixels: int, waiting: int, size: int) -> None:
    """A batch has 2, 4 or 8 jobs, no more than wait, and no more pixels than it may."""
    assert Batching(pixels).size(ALIKE, waiting) == size


def test_a_trial_first() -> None:
    """Each size of batch is tried before it is used; one trial that does not pay ends batches of that kind."""
    batching = Batching(10**6)
    two, four = [ALIKE] * 2, [ALIKE] * 4
    assert (batching.way([ALIKE]), batching.way(two)) == (Way.ALONE, Way.TRIAL)
    batching.learn(two, pays=True)
    assert (batching.way(two), batching.way(four)) == (Way.TOGETHER, Way.TRIAL)
    batching.learn(four, pays=False)
    assert batching.size(ALIKE, 8) == 1
    assert batching.size(job(side=9), 8) == 8


def test_little_is_remembered() -> None:
    """However many kinds of jobs come, what is remembered of them is bounded."""
    batching = Batching(10**9)
    for side in range(1, 3 * MOST_KINDS):
        batching.learn([job(side=1 + side % 7, own=bool(side % 2))] * 2, pays=True)
        batching.learn([replace(ALIKE, plan=str(side))] * 2, pays=True)
    assert len(batching._verdicts) <= MOST_KINDS + 1


class Batches(Silent):
    """Remembers the sizes of batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def ran(self, batch: Ran) -> None:
        self.sizes.append(batch.jobs)


async def many(
    behaviour: str, *, count: int, rounds: int = 1, output: str = "raw"
) -> tuple[list[int], bool, list[int]]:
    """Sizes of the batches, whether every answer was right, and how many jobs each says that it ran with."""
    seen = Batches()
    async with running(behaviour, observer=seen) as engine:
        right, shared = True, []
        for _ in range(rounds):
            sent = [job(float(10 + number), side=8, output=output) for number in range(count)]
            alone = [await run(engine, one) for one in sent] if output != "raw" else []
            found: list[Outcome] = await asyncio.gather(*(run(engine, one) for one in sent))
            expected = [one.block for one in alone] or [one.latent for one in sent]
            right &= [one.block.buffer for one in found] == [one.buffer for one in expected]
            right &= all(one.block.shape == block.shape for one, block in zip(found, expected, strict=True))
            shared += [one.together for one in found]
    return seen.sizes, right, shared


@pytest.mark.parametrize("cores", ["1", "2"])
@pytest.mark.parametrize(
    ("behaviour", "output"),
    [("slow", "raw"), ("slow", "uint8"), ("slow", "first"), ("slow", "unit"), ("slow at first", "raw")],
)
async def test_together(behaviour: str, output: str, cores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where jobs that wait are together as exact and faster, in one batch or on a core each, they run together; each
    gets what it gets alone. That the first time takes long, when everything is set up, does not count.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", cores)
    sizes, right, shared = await many(behaviour, count=9, rounds=3, output=output)
    assert right
    assert sizes.count(8) > 1  # the first is the trial
    assert 8 in shared


@pytest.mark.parametrize(
    ("behaviour", "cores"),
    [
        ("inexact in batches", "1"),
        ("fails in batches", "1"),
        ("breaks in batches", "1"),
        ("gives one for all in batches", "1"),
        ("inexact on one core", "2"),
    ],
)
async def test_not_together(behaviour: str, cores: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a batch gives other bits or fails, its kind runs alone after the trial; nobody sees the difference."""
    monkeypatch.setenv("OMP_NUM_THREADS", cores)
    sizes, right, _ = await many(behaviour, count=9, rounds=2)
    assert right
    assert [size for size in sizes if size > 1] == [8]


async def test_one_bad_job_in_company() -> None:
    """A job that is refused fails alone, not those beside it, and speaks against no batches of its kind."""
    seen = Batches()
    async with running("slow", observer=seen) as engine:
        for _ in range(3):
            sent: list[DecodeJob] = [job(float(10 + number), side=8) for number in range(9)]
            sent[5] = job(float("nan"), side=8)
            found = await asyncio.gather(*(run(engine, one) for one in sent), return_exceptions=True)
            assert [isinstance(one, Outcome) for one in found] == [number != 5 for number in range(9)]
    assert seen.sizes.count(8) == 3


async def test_callers_that_go_away_during_a_trial() -> None:
    """A trial for which nobody waits any more ends with the job that it is at, and has shown nothing."""
    seen = Batches()
    async with running("sleep", observer=seen) as engine:
        busy = asyncio.create_task(run(engine, job(7)))
        await asyncio.sleep(0.1)
        others = [asyncio.create_task(run(engine, job(7, side=8))) for _ in range(8)]
        await busy
        await asyncio.sleep(0.1)  # now the eight run
        for one in others:
            one.cancel()
        asked = time.monotonic()
        await run(engine, job(1))
        assert time.monotonic() - asked < 2  # of the four seconds that they would take, and the trial after them
        before = len(seen.sizes)
        await asyncio.gather(*(run(engine, job(float(10 + number), side=8)) for number in range(9)))
    assert 8 in seen.sizes[before:]
