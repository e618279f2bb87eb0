"""An engine with real processes, and jobs for it; the VAEs in them are in `loaders`."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from remote_vae.core.layout import MatchedLayout
from remote_vae.engine.engine import Engine
from remote_vae.engine.job import DecodeJob, Outcome
from remote_vae.engine.pool import Served
from remote_vae.values import Output, Scaling, ScalingMode, Tensor

HERE = str(Path(__file__).parent)


def served(name: str = "copy", misbehaviour: str = "", *, replicas: int = 1, **options: Any) -> Served:
    if HERE not in sys.path:
        sys.path.insert(0, HERE)
    from loaders import RECIPE

    how = {name: options.pop(name) for name in ("lazy", "pinned") if name in options}
    return Served(name, ("also",), RECIPE, ({"misbehaviour": misbehaviour, **options},) * replicas, **how)


@asynccontextmanager
async def running(misbehaviour: str = "", *, replicas: int = 1, **options: Any) -> AsyncIterator[Engine]:
    """An engine of one model, or of `models`."""
    wait = options.pop("wait", True)
    models = options.pop("models", None) or [served("copy", misbehaviour, replicas=replicas)]
    engine = Engine(models, loader="loaders:load", **options)
    try:
        if wait:
            await engine.start()
        yield engine
    finally:
        await engine.stop()


async def run(engine: Engine, sent: DecodeJob, model: str | None = None, **who: Any) -> Outcome:
    """As a server does, whose reply is taken at once."""
    permit = engine.admit(engine.find(model), sent, **who)
    try:
        return await engine.run(permit)
    finally:
        permit.release()


def job(first: float = 1.0, *, side: int = 4, own: bool = False, output: str = "raw") -> DecodeJob:
    """A square latent; `first` is its first value, by which the VAE may misbehave."""
    values = np.linspace(-1, 1, 3 * side * side, dtype=np.float32).reshape(1, 3, side, side)
    values.flat[0] = first
    fit = MatchedLayout("b c h w -> b c h w", {"b": 1, "c": 3, "h": side, "w": side}, 1, 1, side, side)
    scaling = Scaling(ScalingMode.MODEL if own else ScalingMode.NONE)
    return DecodeJob(scaling, None, Tensor("float32", values.shape, values.tobytes()), fit, Output(output))


async def until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    """Waits for something that happens by itself."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


def pids(engine: Engine, model: str = "copy") -> list[int | None]:
    return [replica.pid for replica in engine._pools[model].replicas]


def segments(engine: Engine) -> list[str]:
    """The names of all shared memory that is in use."""
    replicas = [replica for pool in engine._pools.values() for replica in pool.replicas]
    names = [name for replica in replicas for name in (*replica.segments.names, replica.signals.name)]
    return [*names, engine._ledger.name]
