"""Loads a model when it is wanted, and unloads one that is idle: after some time, or to make room for another."""

import asyncio
import time
from collections import OrderedDict
from typing import Final

from remote_vae.engine.pool import Pool

LOOK_SECONDS: Final = 1.0  # between two looks for idle models


class Residency:
    """Bounds the weights of all models by `budget`, as far as pinned and busy models allow; None sets no bound.

    The budget is bytes, or as a float a share of the memory of the devices on which models have been loaded.

    A model that nobody has used for `idle_seconds` is unloaded too. None leaves it loaded.

    Models load side by side, so that no job waits for another model's download. Only unloading goes one at a time.
    """

    def __init__(self, pools: list[Pool], *, budget: float | None, idle_seconds: float | None = None) -> None:
        self._recent: OrderedDict[str, Pool] = OrderedDict((pool.model.name, pool) for pool in pools)
        self._budget = budget
        self._idle_seconds = idle_seconds
        self._unloading = asyncio.Lock()
        self._loads: dict[str, asyncio.Task[None]] = {}

    async def want(self, pool: Pool) -> None:
        """Returns when the model is loaded, at once if it is; *raises* what loading raises."""
        self._recent.move_to_end(pool.model.name)
        while not pool.loaded:  # it may have been unloaded again before this caller's turn
            load = self._loads.get(pool.model.name)
            if load is None:
                load = self._loads[pool.model.name] = asyncio.create_task(self._load(pool))
                load.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits
            await asyncio.shield(load)  # a caller that goes away must not end the loading that others wait for

    async def watch(self) -> None:
        """Unloads idle models until it is cancelled; returns at once if none is to be unloaded."""
        while self._idle_seconds is not None:
            await asyncio.sleep(min(self._idle_seconds / 4, LOOK_SECONDS))
            async with self._unloading:
                for pool in list(self._recent.values()):
                    if self._may_go(pool) and time.monotonic() - pool.used >= self._idle_seconds:
                        await pool.put_aside("idle")

    async def _load(self, pool: Pool) -> None:
        try:
            await self._make_room(pool)
            await pool.load()
            await self._make_room(pool)  # its size is known only now, if this was the first time
        finally:
            del self._loads[pool.model.name]

    async def _make_room(self, wanted: Pool) -> None:
        async with self._unloading:
            for pool in list(self._recent.values()):
                if self._budget is None or self._bytes(wanted) <= self._budget_bytes(self._budget):
                    return
                if pool is not wanted and self._may_go(pool):
                    await pool.put_aside("budget")

    @staticmethod
    def _may_go(pool: Pool) -> bool:
        return pool.loaded and pool.idle and not pool.model.pinned

    def _bytes(self, wanted: Pool) -> int:
        """The weights of all models that are loaded or about to be."""
        coming = {wanted.model.name, *self._loads}
        return sum(pool.weight_bytes for name, pool in self._recent.items() if pool.loaded or name in coming)

    def _budget_bytes(self, budget: float) -> float:
        if not isinstance(budget, float):
            return budget
        devices = {place.device: place.total_bytes for pool in self._recent.values() for place in pool.places}
        return budget * sum(devices.values())
