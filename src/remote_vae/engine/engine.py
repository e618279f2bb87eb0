"""The facade: `engine.admit` accepts a job for a model, and `engine.run` returns its outcome."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Final

from remote_vae.core.vae_info import VAEInfo
from remote_vae.engine import malloc
from remote_vae.engine.admission import Admission, Limits, Permit
from remote_vae.engine.job import WAITING_BYTES, DecodeJob, Job, Outcome
from remote_vae.engine.ledger import Ledger
from remote_vae.engine.observer import ModelState, Observer, Silent
from remote_vae.engine.place import Loaded
from remote_vae.engine.pool import Pool, Rules, Served
from remote_vae.engine.progress import JobProgress
from remote_vae.engine.queue import Ticket
from remote_vae.engine.relay import Reel
from remote_vae.engine.residency import Residency
from remote_vae.errors import DeadlineExceeded, NotReady, SetupError, UnknownModel

LOG: Final = logging.getLogger("remote_vae.engine")
LOADS_AT_ONCE: Final = 2  # at the start: more would fight for the disk and memory, but one may be a long download


class Engine:
    """Accepts jobs, and passes each to the replicas of its model."""

    def __init__(
        self,
        models: list[Served],
        *,
        loader: str,
        limits: Limits | None = None,
        rules: Rules | None = None,
        weights_budget: float | None = None,
        idle_seconds: float | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.models: Mapping[str, Served] = {model.name: model for model in models}
        self.default = models[0].name
        self._names = {alias: model.name for model in models for alias in model.aliases}
        self.draining = False
        self._admission = Admission(limits or Limits())
        self._ledger = Ledger(sum(len(model.specs) for model in models))
        self._pools: dict[str, Pool] = {}
        for model in models:
            self._pools[model.name] = Pool(
                model,
                loader=loader,
                rules=rules or Rules(),
                held=self._admission.of(model.name),
                observer=observer or Silent(),
                ledger=self._ledger,
                entry=sum(len(pool.model.specs) for pool in self._pools.values()),
            )
        self._residency = Residency(list(self._pools.values()), budget=weights_budget, idle_seconds=idle_seconds)
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Loads every model that is not lazy; *raises* what loading raises."""
        malloc.keep_freed()
        self._watching = asyncio.create_task(self._residency.watch())
        slots = asyncio.Semaphore(LOADS_AT_ONCE)

        async def load(pool: Pool) -> None:
            async with slots:
                await self._residency.want(pool)

        await asyncio.gather(*(load(pool) for pool in self._pools.values() if not pool.model.lazy))

    def drain(self) -> None:
        """Makes `check` and `admit` refuse new jobs; accepted jobs go on."""
        self.draining = True

    @property
    def idle(self) -> bool:
        """No job is accepted or running, and every reply has been sent."""
        return self._admission.empty

    async def stop(self) -> None:
        self.drain()
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.gather(*(pool.stop() for pool in self._pools.values()))
        self._ledger.free()

    def kill(self) -> None:
        """Ends every process and frees all shared memory, at once."""
        for pool in self._pools.values():
            pool.kill()
        self._ledger.free()

    @property
    def ready(self) -> bool:
        """Every model that should be loaded is loaded, all of its processes live, and new jobs are accepted.

        A model that is put away until it is wanted need not be.
        """
        wanted = [pool for pool in self._pools.values() if pool.loaded or not (pool.model.lazy or pool.put_away)]
        return not self.draining and all(pool.ready for pool in wanted)

    def state(self) -> list[ModelState]:
        return [pool.state() for pool in self._pools.values()]

    def put_away(self) -> list[str]:
        """The names of the models that were loaded, and will be again when they are wanted."""
        return [name for name, pool in self._pools.items() if pool.put_away]

    def loaded(self) -> list[Loaded]:
        """What there is to tell of each model when the server is ready."""
        return [pool.told() for pool in self._pools.values()]

    def find(self, name: str | None) -> Served:
        """The model of this name or alias; the first one for None. *Raises* UnknownModel."""
        if name is None:
            return self.models[self.default]
        key = self._names.get(name.lower(), name)
        if key not in self.models:
            raise UnknownModel(f"model {name!r} is not served here; served are {', '.join(self.models)}", model=name)
        return self.models[key]

    def known(self, model: Served) -> VAEInfo | None:
        """The model's info; None before the model has been loaded for the first time."""
        return self._pools[model.name].info

    async def info(self, model: Served) -> VAEInfo:
        """The model's info; loads a lazy model first. *Raises* NotReady if it is not loaded yet or cannot be."""
        pool = self._pools[model.name]
        if pool.info is None and model.lazy:
            await self._want(pool)
        if pool.info is None:
            raise NotReady(f"model {model.name!r} is still loading; try again in a moment", model=model.name)
        return pool.info

    def check(self, model: Served, *, pixels: int, client: str | None, seconds: float | None) -> None:
        """Checks if a job of so many pixels would be accepted now, before the client sends its body.

        *Raises* NotReady, TooManyRequests, Overloaded.
        """
        if self.draining:
            raise NotReady("the server is shutting down and takes no more work")
        self._admission.check(model.name, pixels=pixels, client=client, seconds=seconds)

    def admit(self, model: Served, job: Job, *, client: str | None = None, seconds: float | None = None) -> Permit:
        """Accepts a job. It counts for the share of `client`, which waits `seconds` for the answer.

        *Raises* NotReady, TooManyRequests, Overloaded, PoisonRequest.
        """
        pool = self._pools[model.name]
        pool.poison.check(job)
        if pool.failure is not None and not pool.alive:
            raise NotReady(f"the process of model {model.name!r} could not be started again yet", model=model.name)
        return self._admission.enter(model.name, job, client=client, seconds=seconds)

    async def run(
        self, permit: Permit, *, request_id: str = "", progress: JobProgress | None = None, reel: Reel | None = None
    ) -> Outcome:
        """The job's outcome; `request_id` names it in the log, and `progress` is kept up to date.

        What a streamed job hands over before its end goes to `reel`.
        *Raises* what the core raises, ReplicaFailed, PoisonRequest, DeadlineExceeded, Overloaded.
        """
        pool, progress, reel = self._pools[permit.model], progress or JobProgress(), reel or Reel(WAITING_BYTES)
        try:
            async with asyncio.timeout(permit.seconds):
                await self._want(pool)
                answer = asyncio.get_running_loop().create_future()
                ticket = Ticket(permit.job, permit.client, answer, request_id, progress=progress, reel=reel)
                progress.wait(lambda: pool.position(ticket))
                pool.queue.put(ticket)
                return await ticket.answer
        except TimeoutError:
            raise DeadlineExceeded(f"this was not done within {permit.seconds:g} s", seconds=permit.seconds) from None
        finally:
            reel.close()
            progress.leave()
            permit.worked()

    async def stream(
        self, permit: Permit, *, request_id: str = "", progress: JobProgress | None = None
    ) -> AsyncGenerator[Outcome, None]:
        """The outcome of a streamed job block by block: each has the next frames, and the last one ends the job.

        A job that restarts may give the frames again from the first one.

        If the generator is closed, the job is cancelled. If it is not read, the job waits. *Raises* what `run` raises.
        """
        restarts = isinstance(permit.job, DecodeJob) and permit.job.restarts
        reel = Reel(permit.job.waiting_bytes, restarts=restarts)
        job = asyncio.ensure_future(self.run(permit, request_id=request_id, progress=progress, reel=reel))
        job.add_done_callback(lambda done: done.cancelled() or done.exception())  # if the reader has gone, nobody asks
        try:
            async for block in reel:
                yield block
            yield await job
        finally:
            job.cancel()

    async def _want(self, pool: Pool) -> None:
        try:
            await self._residency.want(pool)
        except SetupError as exc:  # it names files, which are the operator's business
            LOG.error(exc.message, extra={"model": pool.model.name})
            raise NotReady(f"model {pool.model.name!r} could not be loaded", model=pool.model.name) from exc
