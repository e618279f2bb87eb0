"""The engine with real processes: what comes back, and what happens when they die."""

import asyncio
import os
import signal
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest

from remote_vae.engine import container
from remote_vae.engine.admission import Limits
from remote_vae.errors import (
    InternalError,
    ModelLoadError,
    NonFiniteInput,
    Overloaded,
    PoisonRequest,
    ReplicaFailed,
    UnknownModel,
)

from .running import job, pids, run, running, segments, until

DEADLY = ((7, 4), (1, 8), (2, 4))  # first pixel and side of three jobs, of which the first kills the process


async def test_bytes_come_back() -> None:
    """A tensor goes through another process and comes back with its type, its shape and its values."""
    async with running() as engine:
        sent = job()
        outcome = await run(engine, sent)
    assert outcome.tensor.dtype == "float32"
    assert outcome.tensor.shape == (1, 3, 4, 4)
    assert outcome.tensor.buffer == sent.latent.buffer
    assert outcome.plan == "whole"
    assert set(outcome.seconds) == {"queue", "decode"}


async def test_own_scaling_is_applied_in_the_replica() -> None:
    """The model's own constants are used when, and only when, the job asks for them."""
    async with running() as engine:
        outcome = await run(engine, job(own=True))
    values = np.frombuffer(outcome.tensor.buffer, dtype=np.float32)
    assert values[0] == 2.0


@pytest.mark.parametrize("said", [None, "1"])
async def test_replicas_share_the_cores(said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas of a model take an even share of the machine's cores, a single one all, unless the operator says so."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    there = len(os.sched_getaffinity(0))
    for replicas, share in ((1, there), (2, max(1, there // 2))):
        async with running("tell its cores", replicas=replicas) as engine:
            outcome = await run(engine, job())
        assert np.frombuffer(outcome.tensor.buffer, dtype=np.float32)[0] == (share if said is None else int(said))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("900000000 100000", None), ("nonsense", None)],
)
def test_a_container_with_fewer_cores(
    limit: str, expected: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A container's limit on the time of its processors counts as so many cores, if there are more."""
    monkeypatch.setattr(container, "CGROUP", tmp_path)
    assert container.available_cores() == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text(limit + "\n")
    assert container.available_cores() == (expected or len(os.sched_getaffinity(0)))


async def test_a_replica_keeps_to_its_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A replica in a container takes no more threads than that has cores."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(container, "CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    async with running("tell its cores") as engine:
        outcome = await run(engine, job())
    assert np.frombuffer(outcome.tensor.buffer, dtype=np.float32)[0] == 1


async def test_segments_grow() -> None:
    """A job larger than every one before it finds room, and a smaller one after it too."""
    async with running() as engine:
        for side in (4, 600, 8):
            sent = job(side=side)
            outcome = await run(engine, sent)
            assert outcome.tensor.buffer == sent.latent.buffer


async def test_death_over_a_job() -> None:
    """A job over which two processes die fails as PoisonRequest, and the next job finds a new process."""
    async with running("die") as engine:
        before = pids(engine)[0]
        with pytest.raises(PoisonRequest):
            await run(engine, job(7))
        outcome = await run(engine, job(1))
        assert outcome.tensor.shape == (1, 3, 4, 4)
        assert pids(engine)[0] != before


async def test_death_while_idle() -> None:
    """A process that is killed while idle is noticed and started again without a request."""
    async with running() as engine:
        before = pids(engine)[0]
        assert before is not None
        os.kill(before, signal.SIGKILL)
        await until(lambda: engine.ready and pids(engine)[0] != before)
        assert (await run(engine, job())).tensor.shape == (1, 3, 4, 4)


async def test_foreign_exception() -> None:
    """An exception of the model's code becomes an InternalError that tells nothing of the inside; the process lives."""
    async with running("raise") as engine:
        before = pids(engine)[0]
        with pytest.raises(InternalError) as caught:
            await run(engine, job(7))
        assert "internal name" not in caught.value.message
        await run(engine, job(1))
        assert pids(engine)[0] == before


async def test_our_errors_cross_the_process_boundary() -> None:
    """What the core raises in the replica is raised here, as the same class."""
    async with running() as engine:
        with pytest.raises(NonFiniteInput):
            await run(engine, job(float("nan")))


async def test_refused_weights() -> None:
    """A loader's own error comes out of start, with its class and sentence."""
    with pytest.raises(ModelLoadError, match="another architecture"):
        async with running("refuse"):
            pass


async def test_crash_at_load() -> None:
    """A process that dies while it loads is an error at start, not a hang."""
    with pytest.raises(ReplicaFailed, match="while loading"):
        async with running("crash at load"):
            pass


async def test_the_event_loop_is_free() -> None:
    """While a replica works the event loop goes on."""
    async with running("sleep") as engine:
        work = asyncio.create_task(run(engine, job(7)))
        ticks = 0
        while not work.done():
            await asyncio.sleep(0.01)
            ticks += 1
        await work
    assert ticks > 10


async def test_a_caller_that_goes_away() -> None:
    """A job whose caller has gone is worked off, and the next job gets its own answer, not that one's."""
    async with running("sleep") as engine:
        gone = asyncio.create_task(run(engine, job(7)))
        await asyncio.sleep(0.1)
        gone.cancel()
        sent = job(3, side=8)
        outcome = await run(engine, sent)
        assert gone.cancelled()
    assert outcome.tensor.buffer == sent.latent.buffer


async def test_many_at_once() -> None:
    """Jobs of many callers and sizes at once each get their own answer."""
    async with running() as engine:
        sent = [job(float(10 + number), side=4 + number * 7) for number in range(40)]
        found = await asyncio.gather(*(run(engine, one) for one in sent))
    assert [outcome.tensor.buffer for outcome in found] == [one.latent.buffer for one in sent]


async def test_the_job_behind_a_deadly_one() -> None:
    """Only the job that the process was at fails when it dies; those behind it get their answers."""
    async with running("die") as engine:
        deadly, behind, last = (asyncio.create_task(run(engine, job(n, side=s))) for n, s in DEADLY)
        assert (await behind).tensor.shape == (1, 3, 8, 8)
        assert (await last).tensor.shape == (1, 3, 4, 4)
        with pytest.raises(PoisonRequest):
            await deadly


@pytest.mark.alone
async def test_a_caller_that_goes_away_while_it_waits() -> None:
    """A job that nobody waits for any more is not begun."""
    async with running("sleep") as engine:
        first, second, third = (asyncio.create_task(run(engine, job(7))) for _ in range(3))
        await asyncio.sleep(0.1)
        second.cancel()
        third.cancel()
        await first
        started = time.perf_counter()
        await run(engine, job(1))
    assert time.perf_counter() - started < 0.4
    assert second.cancelled()
    assert third.cancelled()


async def test_stopping_over_a_job() -> None:
    """A job that runs while the engine stops fails as ReplicaFailed at once, and nothing hangs."""
    async with running("sleep") as engine:
        work = asyncio.create_task(run(engine, job(7)))
        await asyncio.sleep(0.1)
    with pytest.raises(ReplicaFailed):
        await work


async def test_too_many_waiting() -> None:
    """Beyond the bound on waiting jobs a job is refused at once, and the waiting ones are served."""
    async with running("sleep", limits=Limits(jobs=2)) as engine:
        waiting = [asyncio.create_task(run(engine, job(7))) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded):
            await run(engine, job())
        await asyncio.gather(*waiting)


async def test_nothing_is_left() -> None:
    """After stop the process is gone and its shared memory freed."""
    async with running() as engine:
        await run(engine, job())
        pid = pids(engine)[0]
        names = segments(engine)
        assert len(names) == 4  # both tensors, the signals, the ledger
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)


async def test_names() -> None:
    """A model is found by name, by alias in any case, and as the default; another name is UnknownModel."""
    async with running() as engine:
        assert engine.find(None) is engine.find("copy") is engine.find("ALSO")
        with pytest.raises(UnknownModel):
            engine.find("other")
