"""One model's replicas, which share a queue: loaded, replaced when they die, and unloaded."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from remote_vae.core.recipe import Recipe
from remote_vae.core.vae_info import VAEInfo
from remote_vae.engine.admission import InHand
from remote_vae.engine.batching import Batching
from remote_vae.engine.cores import cores_here
from remote_vae.engine.job import Job, Outcome, op_of
from remote_vae.engine.observer import ModelState, Observer, Ran
from remote_vae.engine.poison import DEATHS, Poison, poisoned
from remote_vae.engine.queue import Queue, Ticket
from remote_vae.engine.replica import Answer, Replica, ReplicaLost
from remote_vae.errors import NotReady, RemoteVAEError, ReplicaFailed

HANG_PIXELS: Final = 2**20  # a job of as many may take `hang_seconds`, a larger one more in proportion
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts to start a process that does not start


@dataclass(frozen=True, slots=True)
class Served:
    """A model as the server knows it before it is loaded; each of `specs` is what the loader of one replica gets.

    `lazy` is loaded by the first request for it, `pinned` never unloaded to make room for another.
    """

    name: str
    aliases: tuple[str, ...]
    recipe: Recipe
    specs: tuple[dict[str, object], ...]
    lazy: bool = False
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """*Units*: seconds for 1024x1024 pixels, after which a replica counts as hung; pixels of one batch in all."""

    hang_seconds: float = 120.0
    batch_pixels: int = 2**18


class Pool:
    """Takes tickets; every replica has a task that takes the next batch whenever it is free."""

    def __init__(self, model: Served, *, loader: str, rules: Rules, held: InHand, observer: Observer) -> None:
        self.model = model
        self.info: VAEInfo | None = None  # kept when the model is unloaded
        self.failure: RemoteVAEError | None = None
        self.restarts = 0
        self.planned_bytes = 0
        self._batching = Batching(rules.batch_pixels)
        self.queue = Queue(self._batching)
        self.poison = Poison()
        self.replicas: list[Replica] = []
        self._loader, self._rules, self._held, self._observer = loader, rules, held, observer
        self._loading = asyncio.Lock()
        self._running = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = False

    @property
    def loaded(self) -> bool:
        return bool(self._tasks)

    @property
    def alive(self) -> int:
        return sum(replica.ready for replica in self.replicas)

    @property
    def ready(self) -> bool:
        """Every replica lives, and so does what feeds it."""
        fed = self.loaded and not any(task.done() for task in self._tasks)
        return fed and self.alive == len(self.model.specs)

    @property
    def idle(self) -> bool:
        """Nobody waits and nothing runs."""
        return self._running == 0 and not len(self.queue)

    @property
    def weight_bytes(self) -> int:
        """Of all replicas, once the model has been loaded for the first time."""
        return self.info.weight_bytes * len(self.model.specs) if self.info else 0

    def state(self) -> ModelState:
        held = self._held
        return ModelState(
            name=self.model.name,
            loaded=self.loaded,
            ready=self.ready,
            replicas=len(self.model.specs),
            alive=self.alive,
            accepted_jobs=held.jobs,
            accepted_pixels=held.pixels,
            waiting_jobs=len(self.queue),
            waiting_pixels=self.queue.pixels,
            memory_bytes=sum(replica.memory_bytes for replica in self.replicas),
            planned_bytes=self.planned_bytes,
            restarts=self.restarts,
        )

    async def load(self) -> None:
        """Starts all replicas, one after the other: two loading at once only fight for the disk and memory.

        *Raises* what the loader raises; then nothing is left running.
        """
        async with self._loading:
            if self._stopped:
                raise NotReady("the server is shutting down and takes no more work")
            if self.loaded:
                return
            try:
                for spec in self.model.specs:
                    replica = Replica(
                        self.model.name,
                        loader=self._loader,
                        spec=spec,
                        cores=max(1, cores_here() // len(self.model.specs)),
                        on_lost=self.queue.wake,
                    )
                    self.replicas.append(replica)
                    self.info = await replica.load()
            except BaseException as exc:
                self.failure = exc if isinstance(exc, RemoteVAEError) else None
                await self._stop_replicas()
                raise
            self.failure = None
            self._held.pace.replicas = len(self.replicas)
            self._tasks = [asyncio.create_task(self._serve(replica)) for replica in self.replicas]

    async def unload(self) -> None:
        """Ends the processes; who still waits gets ReplicaFailed."""
        async with self._loading:
            tasks, self._tasks = self._tasks, []  # from here on it is not loaded, and gets no more tickets
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            _fail(self.queue.empty(), self._stopped_over())
            await self._stop_replicas()

    async def stop(self) -> None:
        self._stopped = True
        for replica in self.replicas:
            replica.give_up()  # who waits for it, or for its loading, need not any more
        await self.unload()

    def kill(self) -> None:
        """Ends the processes at once."""
        for replica in self.replicas:
            replica.free()

    async def _stop_replicas(self) -> None:
        await asyncio.gather(*(replica.stop() for replica in self.replicas))
        self.replicas = []

    async def _serve(self, replica: Replica) -> None:
        again: deque[Ticket] = deque()  # what the process was at when it died
        while True:
            while replica.ready:
                batch = [again.popleft()] if again else await self.queue.take(lambda: replica.ready)
                if batch:
                    again.extend(await self._run(replica, batch))
            await self._revive(replica, again)

    async def _run(self, replica: Replica, batch: list[Ticket]) -> list[Ticket]:
        """Answers the tickets, but for those to be tried once more, each alone, because the process has died."""
        batch = [ticket for ticket in batch if ticket.wanted]
        if not batch:
            return []
        started = time.perf_counter()
        self._running += len(batch)
        try:
            answers = await self._watched(replica, batch)
        except ReplicaLost:
            return [ticket for ticket in batch if self._deserves_another(ticket)]
        except RemoteVAEError as exc:
            _fail(batch, exc)
            return []
        except asyncio.CancelledError:
            _fail(batch, self._stopped_over())
            raise
        finally:
            self._running -= len(batch)
        self._tell(batch, answers, started)
        for ticket, answer in zip(batch, answers, strict=True):
            self.poison.acquit(ticket.job)
            _give(ticket, answer, started - ticket.asked)
        return []

    async def _watched(self, replica: Replica, batch: list[Ticket]) -> list[Answer]:
        """Stops the work when nobody waits for it any more, and the process when it hangs."""

        def left(_: object) -> None:
            if not any(ticket.wanted for ticket in batch):
                replica.abandon()

        for ticket in batch:
            ticket.answer.add_done_callback(left)
        jobs = [ticket.job for ticket in batch]
        patience = self._rules.hang_seconds * max(1.0, sum(job.pixels for job in jobs) / HANG_PIXELS)
        watchdog = asyncio.get_running_loop().call_later(patience, replica.kill)
        try:
            return await self._answers(replica, jobs)
        finally:
            watchdog.cancel()
            for ticket in batch:
                ticket.answer.remove_done_callback(left)

    async def _answers(self, replica: Replica, jobs: list[Job]) -> list[Answer]:
        way = self._batching.way(jobs)
        answers, pays = await replica.run(jobs, way)
        if pays is not None:
            self._batching.learn(jobs, pays=pays)
        return answers

    def _deserves_another(self, ticket: Ticket) -> bool:
        if self.poison.blame(ticket.job) < DEATHS:
            return ticket.wanted
        _fail([ticket], poisoned())
        return False

    def _tell(self, batch: list[Ticket], answers: list[Answer], started: float) -> None:
        seconds, pairs = time.perf_counter() - started, zip(batch, answers, strict=True)
        done = [(ticket.job, answer) for ticket, answer in pairs if isinstance(answer, Outcome)]
        if not done:
            return
        (job, one), pixels = done[0], sum(job.pixels for job, _ in done)
        self._held.pace.note(pixels, seconds)
        self.planned_bytes = one.planned_bytes or 0
        queued = tuple(started - ticket.asked for ticket in batch)
        op, jobs = op_of(job), len(batch)
        self._observer.ran(Ran(self.model.name, op, jobs, pixels, queued, seconds, one.plan, one.planned_bytes))

    async def _revive(self, replica: Replica, again: deque[Ticket]) -> None:
        """Starts the process again, however often that takes; nobody waits for what may never come."""
        cause, pause = "hung" if replica.hung else "died", FIRST_PAUSE
        while not replica.ready:
            try:
                await replica.load()
            except RemoteVAEError as exc:
                self.failure = exc
                _fail([*again, *([] if self.alive else self.queue.empty())], self._stopped_over())
                again.clear()
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        self.failure = None
        self.restarts += 1
        self._observer.restarted(self.model.name, cause)

    def _stopped_over(self) -> ReplicaFailed:
        return ReplicaFailed(f"the process of model {self.model.name!r} ended over this request; try again")


def _give(ticket: Ticket, answer: Answer, queued: float) -> None:
    if not ticket.wanted:
        return
    if isinstance(answer, Outcome):
        ticket.answer.set_result(replace(answer, seconds={"queue": queued, **answer.seconds}))
    else:
        ticket.answer.set_exception(answer)


def _fail(tickets: list[Ticket], error: RemoteVAEError) -> None:
    for ticket in tickets:
        if ticket.wanted:
            ticket.answer.set_exception(error)
