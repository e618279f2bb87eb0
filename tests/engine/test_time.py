"""How long work may take, and that nothing is done for nobody."""

import asyncio
import time

import numpy as np
import pytest

from remote_vae.core.layout import MatchedLayout
from remote_vae.engine.admission import Limits
from remote_vae.engine.engine import Engine
from remote_vae.engine.job import DecodeJob
from remote_vae.engine.observer import Ran, Silent
from remote_vae.engine.pool import Served
from remote_vae.errors import DeadlineExceeded, Overloaded, TooManyRequests
from remote_vae.models.spec import ModelSpec
from remote_vae.values import Output, Scaling, ScalingMode, Tensor

from .running import job, run, running

SLOW = 7.0


class Log(Silent):
    def __init__(self) -> None:
        self.pixels: list[int] = []

    def ran(self, job: Ran) -> None:
        self.pixels.append(job.pixels)


@pytest.mark.alone
async def test_a_deadline() -> None:
    """A job that is not done in time is DeadlineExceeded at that time, although its replica works on."""
    async with running("sleep") as engine:
        started = time.perf_counter()
        with pytest.raises(DeadlineExceeded):
            await run(engine, job(SLOW), seconds=0.2)
        assert 0.15 < time.perf_counter() - started < 0.45


async def test_a_deadline_in_the_queue() -> None:
    """A job whose time is up while it waits is never begun."""
    log = Log()
    async with running("sleep", observer=log) as engine:
        first = asyncio.create_task(run(engine, job(SLOW)))
        await asyncio.sleep(0.1)
        with pytest.raises(DeadlineExceeded):
            await run(engine, job(side=9), seconds=0.1)
        await first
        await run(engine, job(side=2))
    assert log.pixels == [16, 4]


async def test_room_comes_back() -> None:
    """What is refused, late or cancelled takes no room afterwards."""
    async with running("sleep", limits=Limits(jobs=2, client_share=0.5)) as engine:
        first = asyncio.create_task(run(engine, job(SLOW), client="a"))
        await asyncio.sleep(0)
        with pytest.raises(TooManyRequests):
            await run(engine, job(), client="a")
        late = asyncio.create_task(run(engine, job(), client="b", seconds=0.1))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await run(engine, job(), client="c")
        with pytest.raises(DeadlineExceeded):
            await late
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert engine.idle
        assert engine.state()[0].accepted_jobs == 0


def latent(side: int, plan: str | None) -> DecodeJob:
    values = np.random.default_rng(0).standard_normal((1, 16, side, side), dtype=np.float32)
    fit = MatchedLayout("b c h w -> b c h w", {"b": 1, "c": 16, "h": side, "w": side}, 1, 1, 8 * side, 8 * side)
    tensor = Tensor("float32", values.shape, values.tobytes())
    return DecodeJob(Scaling(ScalingMode.MODEL), plan, tensor, fit, Output.UINT8)


@pytest.mark.alone
@pytest.mark.parametrize("how", ["gone", "late"])
async def test_dropped_between_strips(how: str) -> None:
    """A decode that nobody waits for any more ends at its next strip, and the next job is served right away."""
    spec = ModelSpec("demo", device="cpu", dtype="float32")
    model = Served("demo", (), spec.resolve_recipe(), (spec.to_json(),))
    log = Log()
    engine = Engine([model], loader="remote_vae.models.fast_import:open_model", observer=log)
    await engine.start()
    try:
        started = time.perf_counter()
        await run(engine, latent(48, "strips"))
        alone = time.perf_counter() - started
        large = asyncio.create_task(run(engine, latent(144, "strips"), seconds=0.5 if how == "late" else None))
        await asyncio.sleep(0.3)
        if how == "gone":
            large.cancel()
        await asyncio.gather(large, return_exceptions=True)
        started = time.perf_counter()
        assert (await run(engine, latent(8, None))).tensor.shape == (1, 64, 64, 3)
        assert time.perf_counter() - started < 3 * alone  # the large one takes nine times as long
    finally:
        await engine.stop()
    assert log.pixels == [(8 * 48) ** 2, 64**2]
