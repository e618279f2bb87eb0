"""Models that are loaded when they are wanted, and unloaded to make room."""

import asyncio

import pytest

from remote_vae.engine.engine import Engine
from remote_vae.engine.observer import Silent
from remote_vae.errors import NotReady

from .running import job, pids, run, running, served, until

ROOM_FOR_TWO = 2500  # each weighs 1000


def loaded(engine: Engine) -> set[str]:
    return {state.name for state in engine.state() if state.loaded}


async def test_lazy() -> None:
    """A lazy model is loaded by the first job for it, once however many come; the engine is ready without it."""
    async with running(models=[served("now"), served("later", lazy=True)]) as engine:
        assert engine.ready
        assert loaded(engine) == {"now"}
        assert engine.known(engine.find("later")) is None
        info = await asyncio.gather(*(engine.info(engine.find("later")) for _ in range(3)))
        assert info[0].latent_channels == 3
        assert len(pids(engine, "later")) == 1
        assert (await run(engine, job(), "later")).plan == "whole"


async def test_least_recently_used() -> None:
    """Over the budget the idle model that was used the longest ago is unloaded, and loaded again when wanted."""
    names = ("a", "b", "c")
    async with running(models=[served(name, lazy=True) for name in names], weights_budget=ROOM_FOR_TWO) as engine:
        for name in names:
            await engine.info(engine.find(name))
            await run(engine, job(), name)
        assert loaded(engine) == {"b", "c"}
        assert engine.known(engine.find("a")) is not None
        await run(engine, job(), "b")
        assert (await run(engine, job(3.0), "a")).tensor.buffer == job(3.0).latent.buffer
        assert loaded(engine) == {"a", "b"}


@pytest.mark.parametrize(("share", "left"), [(1e-12, {"b"}), (0.9, {"a", "b"})])
async def test_a_share_of_the_memory(share: float, left: set[str]) -> None:
    """A budget can be a share of the memory of the device that the models run on."""
    async with running(models=[served("a", lazy=True), served("b", lazy=True)], weights_budget=share) as engine:
        for name in ("a", "b"):
            await engine.info(engine.find(name))
        assert loaded(engine) == left


class Noted(Silent):
    def __init__(self) -> None:
        self.unloads: list[tuple[str, str]] = []

    def unloaded(self, model: str, cause: str) -> None:
        self.unloads.append((model, cause))


async def test_an_idle_model_is_unloaded() -> None:
    """A model that nobody uses ends its process, and the next job loads it again; pinned and busy ones stay."""
    models = [served("idle"), served("pinned", pinned=True), served("busy", "compute")]
    noted = Noted()
    async with running(models=models, idle_seconds=1.5, observer=noted) as engine:
        work = asyncio.create_task(run(engine, job(7.0), "busy"))  # it takes longer than the idle seconds
        await until(lambda: ("idle", "idle") in noted.unloads)
        assert "pinned" in loaded(engine)
        assert pids(engine, "idle") == []
        assert engine.ready
        assert "idle" in engine.put_away()
        assert (await work).plan == "whole"
        assert (await run(engine, job(3.0), "idle")).tensor.buffer == job(3.0).latent.buffer
        assert "idle" in loaded(engine)
        assert "idle" not in engine.put_away()


async def test_jobs_that_come_while_a_model_is_unloaded() -> None:
    """However often a model is unloaded between jobs, every job is answered."""
    async with running(idle_seconds=0.01) as engine:
        for pause in (0.0, 0.005, 0.02, 0.05, 0.3):
            await asyncio.sleep(pause)
            outcomes = await asyncio.gather(*(run(engine, job(3.0)) for _ in range(3)))
            assert {bytes(outcome.tensor.buffer) for outcome in outcomes} == {bytes(job(3.0).latent.buffer)}


async def test_pinned_and_busy() -> None:
    """A model that is pinned, or at work, is not unloaded."""
    models = [served("pinned", pinned=True), served("busy", "hang", lazy=True), served("c", lazy=True)]
    async with running(models=models, weights_budget=1) as engine:
        await engine.info(engine.find("busy"))
        work = asyncio.create_task(run(engine, job(7.0), "busy"))
        await asyncio.sleep(0.1)
        await engine.info(engine.find("c"))
        assert loaded(engine) == {"pinned", "busy", "c"}
        work.cancel()


async def test_one_who_goes_away_while_it_loads() -> None:
    """A caller that goes away does not end the loading that others wait for."""
    async with running(models=[served("now"), served("later", lazy=True)]) as engine:
        first, second = (asyncio.create_task(engine.info(engine.find("later"))) for _ in range(2))
        await asyncio.sleep(0.2)
        first.cancel()
        assert (await second).latent_channels == 3


async def test_a_lazy_model_that_cannot_be_loaded() -> None:
    """Whoever asks for a lazy model that cannot be loaded is told so; the others are served."""
    async with running(models=[served("now"), served("bad", "refuse", lazy=True)]) as engine:
        with pytest.raises(NotReady, match="could not be loaded"):
            await engine.info(engine.find("bad"))
        assert engine.ready
        await run(engine, job(), "now")
