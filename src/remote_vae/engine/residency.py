"""Which models are loaded: the lazy ones when they are wanted, the least recently used unloaded to make room."""

import asyncio
from collections import OrderedDict

from remote_vae.engine.pool import Pool


class Residency:
    """`budget_bytes` bounds the weights of all models together, as far as pinned and busy ones allow; None does not."""

    def __init__(self, pools: list[Pool], *, budget_bytes: int | None) -> None:
        self._recent: OrderedDict[str, Pool] = OrderedDict((pool.model.name, pool) for pool in pools)
        self._budget_bytes = budget_bytes
        self._changing = asyncio.Lock()
        self._loads: dict[str, asyncio.Task[None]] = {}

    async def want(self, pool: Pool) -> None:
        """Returns when the model is loaded; *raises* what loading raises."""
        self._recent.move_to_end(pool.model.name)
        if pool.loaded:
            return
        load = self._loads.get(pool.model.name)
        if load is None:
            load = self._loads[pool.model.name] = asyncio.create_task(self._load(pool))
            load.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits any more
        await asyncio.shield(load)  # one who goes away takes nothing from the others who wait for the same model

    async def _load(self, pool: Pool) -> None:
        try:
            async with self._changing:
                await self._make_room(pool)
                await pool.load()
                await self._make_room(pool)  # only now is its size known, if this was the first time
        finally:
            del self._loads[pool.model.name]

    async def _make_room(self, wanted: Pool) -> None:
        for pool in list(self._recent.values()):
            if self._budget_bytes is None or self._bytes(wanted) <= self._budget_bytes:
                return
            if pool is not wanted and pool.loaded and not pool.model.pinned and pool.idle:
                await pool.unload()

    def _bytes(self, wanted: Pool) -> int:
        """Of everything that is loaded or about to be."""
        return sum(pool.weight_bytes for pool in self._recent.values() if pool.loaded or pool is wanted)
