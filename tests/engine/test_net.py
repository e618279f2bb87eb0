"""No single fault takes anything else down: the loop of a pool, the lease of a job, shared memory and budgets."""

import asyncio
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import pytest
import torch

from remote_vae.engine.admission import Admission, Limits
from remote_vae.engine.child import JobRunner
from remote_vae.engine.ledger import Entry, Ledger
from remote_vae.engine.memory import Budget
from remote_vae.engine.observer import Ran, Silent
from remote_vae.engine.pool import Rules
from remote_vae.engine.replica import Replica
from remote_vae.engine.shared_memory import Segments
from remote_vae.errors import (
    DeadlineExceeded,
    InternalError,
    NotReady,
    Overloaded,
    PoisonRequest,
    RemoteVAEError,
    ReplicaFailed,
    TooLarge,
    TooManyRequests,
)

from .running import job, pids, run, running, segments, served, until

BAD, GOOD = 7.0, 1.0
CPU = torch.device("cpu")


def failing(times: int, error: BaseException, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but its first calls raise the error."""
    left = times

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise error
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("error", [OSError(12, "Cannot allocate memory"), MemoryError(), RuntimeError("no thread")])
@pytest.mark.parametrize("where", ["Pipe", "start"])
async def test_a_replica_that_cannot_be_started(
    where: str, error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the system cannot start a process, the pool says so, tries again with pauses, and can be stopped."""
    context = multiprocessing.get_context("spawn")
    owner = type(context) if where == "Pipe" else context.Process
    async with running() as engine:
        monkeypatch.setattr(owner, where, failing(2, error, getattr(owner, where)))
        os.kill(pids(engine)[0] or 0, signal.SIGKILL)
        await until(lambda: not engine.ready)
        await until(lambda: "could not be started" in caplog.text)
        assert not engine.ready
        await until(lambda: engine.ready)
        assert (await run(engine, job(GOOD))).plan == "whole"


async def test_stopping_while_no_replica_can_be_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine whose process cannot be started stops, and frees its shared memory."""
    async with running() as engine:
        names = segments(engine)
        process = multiprocessing.get_context("spawn").Process
        monkeypatch.setattr(process, "start", failing(10**6, OSError(12, "no memory"), process.start))
        os.kill(pids(engine)[0] or 0, signal.SIGKILL)
        await until(lambda: engine._pools["copy"].failure is not None)
    assert not [name for name in names if os.path.exists(f"/dev/shm/{name}")]
    assert "did not stop in good order" not in caplog.text


async def test_an_observer_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in the metrics costs no job its answer, and no replica its process."""

    class Broken(Silent):
        def ran(self, job: Ran) -> None:
            raise KeyError("a label")

        restarted = ran  # type: ignore[assignment]

    async with running(observer=Broken()) as engine:
        for killed in (False, True):
            before = pids(engine)
            if killed:
                os.kill(before[0] or 0, signal.SIGKILL)
                await until(lambda before=before: engine.ready and pids(engine) != before)  # type: ignore[misc]
                before = pids(engine)
            for _ in range(2):
                assert (await run(engine, job(GOOD), seconds=60)).plan == "whole"
            assert pids(engine) == before
    assert any(record.exc_info and record.exc_info[0] is KeyError for record in caplog.records)


async def test_stopping_while_a_job_is_to_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose process has died is told so if the engine stops before another process has started."""
    starting = asyncio.Event()

    async def never(self: Replica) -> None:
        starting.set()
        await asyncio.Event().wait()

    async with running("die") as engine:
        monkeypatch.setattr(Replica, "load", never)
        work = asyncio.create_task(run(engine, job(BAD)))
        await asyncio.wait_for(starting.wait(), 60)
    async with asyncio.timeout(10):
        with pytest.raises(ReplicaFailed):
            await work


async def test_stopping_while_the_first_of_two_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the engine stops, no other process is started."""
    load, loaded = Replica.load, 0

    async def slow(self: Replica) -> Any:
        nonlocal loaded
        info, loaded = await load(self), loaded + 1
        engine._pools["copy"]._stopped = True  # as a stop in this moment does
        return info

    monkeypatch.setattr(Replica, "load", slow)
    async with running(replicas=2, wait=False) as engine:
        with pytest.raises(NotReady):
            await engine.start()
    assert loaded == 1


@pytest.mark.parametrize("where", ["read", "prepare"])
async def test_no_memory_for_a_tensor(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the server has no memory for a tensor, the job is answered, the replica replaced, and the log has frames."""
    monkeypatch.setattr(Segments, where, failing(1, MemoryError(), getattr(Segments, where)))
    async with running() as engine:
        before = pids(engine)
        with pytest.raises(ReplicaFailed):
            await run(engine, job(GOOD))
        assert (await run(engine, job(GOOD))).plan == "whole"
        assert pids(engine) != before
    assert any(record.exc_info and record.exc_info[0] is MemoryError for record in caplog.records)


async def test_a_late_stop_harms_no_other_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that leaves in the moment of its answer does not stop the next caller's job."""
    async with running("slow layers") as engine:
        replica = engine._pools["copy"].replicas[0]
        ask = replica.ask

        async def answered_and_left(message: Any) -> Any:
            told = await ask(message)
            first.cancel()  # the next job is sent before the loop calls what this calls back
            return told

        monkeypatch.setattr(replica, "ask", answered_and_left)
        first = asyncio.create_task(run(engine, job(GOOD)))
        second = asyncio.create_task(run(engine, job(BAD, side=8)))
        assert (await second).tensor.shape == (1, 3, 8, 8)
        assert first.cancelled()


async def test_the_idle_timer_spares_a_segment_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory is not freed while a job uses it, however long the job before it is over."""
    monkeypatch.setattr("remote_vae.engine.replica.IDLE_SECONDS", 0.2)
    async with running() as engine:
        replica = engine._pools["copy"].replicas[0]
        sent = job(GOOD, side=1300)  # 20 MB, so its segments are freed when idle
        await run(engine, sent)
        prepare = replica.segments.prepare

        def slow(*args: Any) -> tuple[str, str]:
            found = prepare(*args)
            time.sleep(0.6)
            return found

        monkeypatch.setattr(replica.segments, "prepare", slow)
        assert (await run(engine, sent)).tensor.shape == sent.latent.shape
        await until(lambda: not replica.segments.names)


async def test_copies_do_not_hold_the_event_loop() -> None:
    """While a tensor of 200 MB is copied in and out, the event loop is never held for a tenth of a second."""
    async with running() as engine:
        sent, longest = job(GOOD, side=4096), 0.0
        work = asyncio.create_task(run(engine, sent))
        while not work.done():
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before)
        assert (await work).tensor.buffer == sent.latent.buffer
    assert longest < 0.1


async def test_slow_is_not_hung() -> None:
    """A model whose layers go on is not killed, however much longer than `hang_seconds` they take together."""
    async with running("slow layers", rules=Rules(hang_seconds=1.5)) as engine:
        before = pids(engine)
        started = time.monotonic()
        await run(engine, job(BAD))
        assert time.monotonic() - started > 3
        assert pids(engine) == before


async def test_a_long_layer_is_not_hung() -> None:
    """One layer that computes longer than `hang_seconds` goes on while its caller waits, and is ended afterwards."""
    rules = Rules(hang_seconds=1.0)
    async with running("compute", rules=rules) as engine:
        before = pids(engine)
        assert (await run(engine, job(BAD))).plan == "whole"
        assert pids(engine) == before
    async with running("compute for ever", rules=rules) as engine:
        with pytest.raises(DeadlineExceeded):
            await run(engine, job(BAD), seconds=2.0)
        assert (await run(engine, job(GOOD), seconds=100.0)).plan == "whole"


async def test_a_stopped_process_is_replaced() -> None:
    """A process that is stopped by a signal makes no progress, and is replaced; the error names the option."""
    async with running("sleep", rules=Rules(hang_seconds=1.0)) as engine:
        stopped = pids(engine)[0] or 0
        work = asyncio.create_task(run(engine, job(BAD)))
        await until(lambda: engine._pools["copy"].replicas[0]._answer is not None)
        os.kill(stopped, signal.SIGSTOP)
        assert (await work).plan == "whole"
        assert pids(engine)[0] != stopped
    async with running("hang", rules=Rules(hang_seconds=0.5)) as engine:
        with pytest.raises(PoisonRequest, match="--hang-seconds"):
            await run(engine, job(BAD))


@pytest.fixture
def busy_neighbours() -> Iterator[None]:
    """Four processes that take all of the CPU that they can get."""
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    yield
    for neighbour in neighbours:
        neighbour.kill()
        neighbour.wait()


@pytest.mark.alone
@pytest.mark.usefixtures("busy_neighbours")
async def test_busy_neighbours() -> None:
    """Beside four busy processes a job that computes is slow, not hung; one that is stopped is replaced as ever."""
    async with running("compute", rules=Rules(hang_seconds=1.5)) as engine:
        before = pids(engine)
        assert (await run(engine, job(BAD))).plan == "whole"
        assert (pids(engine), engine.state()[0].restarts) == (before, 0)
        work = asyncio.create_task(run(engine, job(BAD)))
        await until(lambda: engine._pools["copy"].replicas[0]._answer is not None)
        os.kill(before[0] or 0, signal.SIGSTOP)
        assert (await work).plan == "whole"
        assert pids(engine) != before


async def test_an_exception_of_the_model_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The log has the type and the frames of a model's exception and the request's id, but not what it says."""
    async with running("raise") as engine:
        with pytest.raises(InternalError), engine.admit(engine.find(None), job(BAD)) as permit:
            await engine.run(permit, request_id="r-1")
    record: Any = next(record for record in caplog.records if hasattr(record, "exception"))
    assert (record.exception, record.request_id, record.levelno) == ("KeyError", "r-1", logging.ERROR)
    assert any(frame.startswith("loaders.py:") for frame in record.frames)
    assert "internal name" not in caplog.text


async def test_a_decode_that_can_never_fit() -> None:
    """Running out of memory is TooLarge if nothing else was at work on the device, and Overloaded otherwise.

    The process lives on and answers the next job.
    """
    async with running("run out of memory") as engine:
        before = pids(engine)
        with pytest.raises(TooLarge):
            await run(engine, job(BAD))
        assert (await run(engine, job(GOOD))).plan == "whole"
        assert pids(engine) == before
    async with running(models=[served("copy", "run out of memory"), served("other", "sleep")]) as engine:
        other = asyncio.create_task(run(engine, job(BAD), "other"))
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded):
            await run(engine, job(BAD), "copy")
        await other


def test_replicas_share_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one replica has claimed is not free for another one on its device until it is given back."""
    monkeypatch.setattr("remote_vae.engine.memory.free_bytes", lambda device: 1000)
    ledger = Ledger(3)
    try:
        one, two = (
            Budget(CPU, limit=None, weights_bytes=0, entry=Entry(ledger.name, number, device="cpu"))
            for number in (0, 1)
        )
        elsewhere = Budget(CPU, limit=None, weights_bytes=0, entry=Entry(ledger.name, 2, device="cuda:0"))
        one.begin()
        two.begin()
        elsewhere.begin()
        assert (one.bytes_now(), two.bytes_now()) == (1000, 1000)
        assert one.reserve(700)
        assert (two.bytes_now(), elsewhere.bytes_now()) == (300, 1000)
        assert not two.reserve(700)  # planned before the other had claimed
        assert two.reserve(300)
        ledger.clear(0)  # its process has died
        assert two.bytes_now() == 1000
        two.end()
        assert one.bytes_now() == 1000
    finally:
        ledger.free()


def test_what_is_judged_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that has fitted in other times, and does not only because others hold the memory, can be tried again."""
    free = 1000
    monkeypatch.setattr("remote_vae.engine.memory.free_bytes", lambda device: free)
    budget = Budget(CPU, limit=None, weights_bytes=0)
    free = 100
    budget.begin()
    refused = TooLarge("too large", peak_bytes=900, budget_bytes=100)
    assert isinstance(budget.judge(refused), Overloaded)
    assert budget.judge(never := TooLarge("too large", peak_bytes=1100, budget_bytes=100)) is never
    free = 1000
    budget.begin()
    assert budget.judge(refused) is refused


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, Overloaded])
def test_what_a_failed_job_held_is_not_taken_for_other_work(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget looks at the memory when the tensors of the job that ran out of it are freed."""
    held: WeakSet[torch.Tensor] = WeakSet()

    def fill(self: JobRunner, job: Any, tensor: Any) -> Any:
        result = torch.zeros(1)
        held.add(result)
        raise error("out of memory")

    monkeypatch.setattr("remote_vae.engine.memory.free_bytes", lambda device: 10 if held else 1000)
    monkeypatch.setattr(JobRunner, "_input", lambda self, job: None)
    monkeypatch.setattr(JobRunner, "_run", fill)
    budget, model = Budget(CPU, limit=None, weights_bytes=0), SimpleNamespace(device=CPU)
    signals = SimpleNamespace(tell=lambda *told: None)
    runner: Any = JobRunner(model, None, budget, signals, None)  # type: ignore[arg-type]
    budget.begin()
    assert runner._answer({})["error"]["error_type"] == "too_large"


def test_one_who_does_not_read() -> None:
    """A client that does not read its replies uses up its own share, and nobody else's."""
    admission = Admission(Limits(reply_bytes=10_000, client_share=0.5))
    taken = [admission.enter("m", job(side=20), client="a")]
    taken[0].worked()
    with pytest.raises(TooManyRequests):
        admission.enter("m", job(side=20), client="a")
    assert admission.reply_bytes == 4800
    taken.append(admission.enter("m", job(side=20), client="b"))
    for permit in taken:
        permit.release()
    large = admission.enter("m", job(side=100), client="a")  # alone it may be larger than its share
    large.worked()
    admission.enter("m", job(side=20), client="b").release()
    large.release()
    assert admission.empty


async def test_a_slow_load_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one model loads, others load and are served, and only that one is not ready."""
    load, held = Replica.load, asyncio.Event()

    async def slow(self: Replica) -> Any:
        if self.name == "slow":
            await held.wait()
        return await load(self)

    monkeypatch.setattr(Replica, "load", slow)
    models = [served("slow"), served("copy"), served("later", lazy=True)]
    async with running(models=models, wait=False) as engine:
        starting = asyncio.create_task(engine.start())
        await until(lambda: engine.known(engine.find("copy")) is not None)
        assert (await run(engine, job(GOOD), "copy")).plan == "whole"
        assert (await engine.info(engine.find("later"))).latent_channels == 3
        with pytest.raises(RemoteVAEError, match="still loading"):
            await engine.info(engine.find("slow"))
        held.set()
        await starting
        assert engine.ready


async def test_a_deadline_is_told_to_the_replica() -> None:
    """A job whose time is up ends at its next layer."""
    async with running("slow layers") as engine:
        with pytest.raises(DeadlineExceeded):
            await run(engine, job(BAD), seconds=0.3)
        started = time.monotonic()
        await run(engine, job(GOOD))
        assert time.monotonic() - started < 3
