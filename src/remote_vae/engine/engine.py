"""The facade: `await engine.decode(...)`, by the name of a model."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from remote_vae.core.facts import Facts
from remote_vae.core.recipe import Recipe
from remote_vae.engine.job import DecodeJob, EncodeJob, Outcome
from remote_vae.engine.replica import Replica
from remote_vae.errors import NotReady, Overloaded, RemoteVAEError, UnknownModel

MOST_WAITING: Final = 64
WATCH_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Served:
    """A model as the server knows it before it is loaded; `spec` is what the loader is called with."""

    name: str
    aliases: tuple[str, ...]
    recipe: Recipe
    spec: dict[str, object]


class Engine:
    """Routes jobs to the replica of their model and bounds how many wait."""

    def __init__(self, models: list[Served], *, loader: str, most_waiting: int = MOST_WAITING) -> None:
        self.models: Mapping[str, Served] = {model.name: model for model in models}
        self.default = models[0].name
        self._names = {alias: model.name for model in models for alias in model.aliases}
        self._replicas = {model.name: Replica(model.name, loader=loader, spec=model.spec) for model in models}
        self._waiting = dict.fromkeys(self.models, 0)
        self._most_waiting = most_waiting
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads every model, one after the other: two loading at once only fight for the disk and memory."""
        for replica in self._replicas.values():
            await replica.start()
        self._watch = asyncio.create_task(self._revive())

    async def _revive(self) -> None:
        """Starts replicas that died while idle; one that dies over a job is started again by the next job."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            for replica in self._replicas.values():
                if not replica.ready:
                    with contextlib.suppress(RemoteVAEError):  # it stays in `failure`, and is tried again
                        await replica.start()

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.gather(*(replica.stop() for replica in self._replicas.values()))

    @property
    def ready(self) -> bool:
        return all(replica.ready for replica in self._replicas.values())

    @property
    def failure(self) -> RemoteVAEError | None:
        return next((replica.failure for replica in self._replicas.values() if replica.failure), None)

    def pids(self) -> dict[str, int | None]:
        return {name: replica.pid for name, replica in self._replicas.items()}

    def find(self, name: str | None) -> Served:
        """By name or alias; None is the first model. *Raises* UnknownModel."""
        if name is None:
            return self.models[self.default]
        key = self._names.get(name.lower(), name)
        if key not in self.models:
            raise UnknownModel(f"model {name!r} is not served here; served are {', '.join(self.models)}", model=name)
        return self.models[key]

    def facts(self, model: Served) -> Facts:
        """*Raises* NotReady while the model is loading."""
        facts = self._replicas[model.name].facts
        if facts is None:
            raise NotReady(f"model {model.name!r} is still loading; try again in a moment", model=model.name)
        return facts

    async def run(self, model: Served, job: DecodeJob | EncodeJob) -> Outcome:
        """*Raises* what the core raises, Overloaded, ReplicaFailed, NotReady."""
        if self._waiting[model.name] >= self._most_waiting:
            raise Overloaded(f"{self._most_waiting} requests are waiting for model {model.name!r}; try again later")
        self._waiting[model.name] += 1
        try:
            return await self._replicas[model.name].run(job)
        finally:
            self._waiting[model.name] -= 1
