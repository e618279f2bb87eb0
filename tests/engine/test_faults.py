"""Replicas that die, hang or break, with real processes: what the callers see, and that nothing is left behind."""

import asyncio
import gc
import multiprocessing
import os
import signal
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest

from remote_vae.engine.engine import Engine
from remote_vae.engine.job import Outcome
from remote_vae.engine.observer import Silent
from remote_vae.engine.pool import Rules
from remote_vae.errors import NotReady, PoisonRequest, ReplicaFailed

from .running import job, pids, run, running, segments, served, until

DEADLY = (
    "die",
    "die in native code",
    "abort",
    "be killed",
    "exit",
    "lose the device",
    "break the device",
    "leave the pipe",
)
HANGING = ("hang",)
BAD, GOOD = 7.0, 1.0
QUICK = Rules(hang_seconds=1.0)


class Restarts(Silent):
    def __init__(self) -> None:
        self.causes: list[str] = []

    def restarted(self, model: str, cause: str) -> None:
        self.causes.append(cause)


def pid(engine: Engine, index: int = 0) -> int:
    found = pids(engine)[index]
    assert found is not None
    return found


@pytest.mark.parametrize("fault", [*DEADLY, *HANGING])
async def test_a_deadly_job(fault: str) -> None:
    """A job that ends or hangs two processes is refused as poison; the one behind it is served; the third one lives."""
    seen, rules = Restarts(), QUICK if fault in HANGING else Rules()
    async with running(fault, rules=rules, observer=seen) as engine:
        first = pid(engine)
        deadly = asyncio.create_task(run(engine, job(BAD)))
        await asyncio.sleep(0)
        behind = asyncio.create_task(run(engine, job(GOOD, side=8)))
        with pytest.raises(PoisonRequest):
            await deadly
        assert (await behind).tensor.buffer == job(GOOD, side=8).latent.buffer
        assert engine.ready
        assert seen.causes == ["hung" if fault in HANGING else "died"] * 2
        assert engine.state()[0].restarts == 2
        last = pid(engine)
        assert last != first
        with pytest.raises(PoisonRequest):
            await run(engine, job(BAD))
        assert (await run(engine, job(GOOD))).plan == "whole"
        assert pid(engine) == last


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_killed_over_a_job(number: int) -> None:
    """A job whose process is killed from outside is done again, and neither it nor those behind it are lost."""
    async with running("sleep") as engine:
        sent = [job(BAD), *(job(float(10 + index)) for index in range(5))]
        work = [asyncio.create_task(run(engine, one)) for one in sent]
        await asyncio.sleep(0.2)
        os.kill(pid(engine), number)
        await until(lambda: not engine.ready, seconds=2)
        found = await asyncio.gather(*work)
        assert [one.tensor.buffer for one in found] == [one.latent.buffer for one in sent]
        os.kill(pid(engine), number)  # a second time, but it was not to blame for the first
        assert (await run(engine, job(BAD))).plan == "whole"


async def test_killed_once_a_second() -> None:
    """While a replica is killed again and again, every answer is right or says to try again."""
    async with running() as engine:
        done, wrong = 0, []

        async def ask(number: int) -> None:
            nonlocal done
            sent = job(float(10 + number), side=16)
            while True:
                try:
                    outcome = await run(engine, sent)
                except (ReplicaFailed, PoisonRequest, NotReady) as exc:
                    wrong.append(exc)
                    return
                if outcome.tensor.buffer != sent.latent.buffer:
                    wrong.append(ValueError("another's answer"))
                done += 1
                if engine.draining:
                    return

        asking = [asyncio.create_task(ask(number)) for number in range(8)]
        for _ in range(3):
            await until(lambda: engine.ready)
            before = done
            await until(lambda before=before: done > before + 20)  # type: ignore[misc]
            os.kill(pid(engine), signal.SIGKILL)
            await until(lambda: not engine.ready, seconds=2)
        await until(lambda: engine.ready)
        engine.drain()
        await asyncio.gather(*asking)
        assert wrong == []


async def test_two_replicas() -> None:
    """Two replicas of a model share its queue; when one dies, the other serves on, and the engine is not ready."""
    async with running("sleep", replicas=2) as engine:
        work = [asyncio.create_task(run(engine, job(BAD))) for _ in range(2)]
        await asyncio.sleep(0.1)
        state = engine.state()[0]
        assert (state.accepted_jobs, state.waiting_jobs) == (2, 0)
        await asyncio.gather(*work)
        os.kill(pid(engine, 1), signal.SIGKILL)
        await until(lambda: not engine.ready, seconds=2)
        assert engine.state()[0].alive == 1
        assert isinstance(await run(engine, job(GOOD)), Outcome)
        await until(lambda: engine.ready)


async def test_poison_spares_the_other_replica() -> None:
    """A deadly job is tried again by the replica that it killed, so another one works on undisturbed."""
    async with running("die", replicas=2) as engine:
        before = pids(engine)
        with pytest.raises(PoisonRequest):
            await run(engine, job(BAD))
        await until(lambda: engine.ready)
        assert len(set(before) & set(pids(engine))) == 1


async def test_a_replica_that_does_not_come_back(tmp_path: Path) -> None:
    """While a process cannot be started again callers are told at once, and it is tried until it can."""
    model = served("copy", "die", starts=str(tmp_path / "starts"), once=True)
    async with running(models=[model]) as engine:
        with pytest.raises(ReplicaFailed):
            await run(engine, job(BAD))
        with pytest.raises(NotReady):
            await run(engine, job(GOOD))
        await until(lambda: engine.ready)
        assert (await run(engine, job(GOOD))).plan == "whole"


async def test_stopping_while_it_hangs() -> None:
    """An engine stops within a few seconds although a replica hangs; its caller is told."""
    async with running("hang") as engine:
        work = asyncio.create_task(run(engine, job(BAD)))
        await asyncio.sleep(0.2)
        started = time.perf_counter()
    assert time.perf_counter() - started < 8
    with pytest.raises(ReplicaFailed):
        await work


def held() -> dict[str, Any]:
    """What this process holds that a leak would show in."""
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": len(multiprocessing.active_children()),
        "mapped": Path("/proc/self/maps").read_text().count("/dev/shm/"),
    }


async def test_nothing_is_left_of_many_faults() -> None:
    """After deaths, hangs, large jobs and a stop, descriptors, children and shared memory are as at the start."""
    async with running():  # whatever is opened once, such as the tracker of shared memory
        pass
    before, names = held(), set()
    async with running("hang", replicas=2, rules=Rules(hang_seconds=0.3)) as engine:
        for _ in range(2):
            os.kill(pid(engine), signal.SIGKILL)
            await until(lambda: not engine.ready, seconds=2)
            await until(lambda: engine.ready)
        with pytest.raises(PoisonRequest):
            await run(engine, job(BAD))
        await run(engine, job(GOOD, side=1500))
        names |= set(segments(engine))
        gone = asyncio.create_task(run(engine, job(GOOD, side=1500)))
        await asyncio.sleep(0)
        gone.cancel()
    assert held() == before
    assert len(names) >= 4
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)
