"""One model's replicas, which share a queue: loaded, replaced when they die, and unloaded."""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Final

from remote_vae.core.recipe import Recipe
from remote_vae.core.vae_info import VAEInfo
from remote_vae.engine.admission import InHand
from remote_vae.engine.container import available_cores
from remote_vae.engine.job import Outcome, op_of
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
    """*Units*: seconds for 1024x1024 pixels, after which a replica counts as hung."""

    hang_seconds: float = 120.0


class Pool:
    """Takes tickets; every replica has a task that takes the next one whenever it is free."""

    def __init__(self, model: Served, *, loader: str, rules: Rules, held: InHand, observer: Observer) -> None:
        self.model = model
        self.info: VAEInfo | None = None  # kept when the model is unloaded
        self.failure: RemoteVAEError | None = None
        self.restarts = 0
        self.planned_bytes = 0
        self.queue = Queue()
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
                        cores=max(1, available_cores() // len(self.model.specs)),
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
        again: Ticket | None = None  # the job that the process died over, if it is to be tried once more
        while True:
            while replica.ready:
                ticket = again or await self.queue.take(lambda: replica.ready)
                again = await self._run(replica, ticket) if ticket is not None and ticket.wanted else None
            await self._revive(replica, again)

    async def _run(self, replica: Replica, ticket: Ticket) -> Ticket | None:
        """Answers the ticket, or gives it back if it is to be tried once more, because the process has died."""
        started = time.perf_counter()
        self._running += 1
        try:
            answer = await self._watched(replica, ticket)
        except ReplicaLost:
            return ticket if self._deserves_another(ticket) else None
        except RemoteVAEError as exc:
            answer = exc
        except asyncio.CancelledError:
            _fail([ticket], self._stopped_over())
            raise
        finally:
            self._running -= 1
        if isinstance(answer, Outcome):
            self._tell(ticket, answer, started)
        self.poison.acquit(ticket.job)
        _give(ticket, answer, started - ticket.asked)
        return None

    async def _watched(self, replica: Replica, ticket: Ticket) -> Answer:
        """Stops the work when nobody waits for it any more, and the process when it hangs."""

        def left(_: object) -> None:
            replica.abandon()

        ticket.answer.add_done_callback(left)
        patience = self._rules.hang_seconds * max(1.0, ticket.job.pixels / HANG_PIXELS)
        watchdog = asyncio.get_running_loop().call_later(patience, replica.kill)
        try:
            return await replica.run(ticket.job)
        finally:
            watchdog.cancel()
            ticket.answer.remove_done_callback(left)

    def _deserves_another(self, ticket: Ticket) -> bool:
        if self.poison.blame(ticket.job) < DEATHS:
            return ticket.wanted
        _fail([ticket], poisoned())
        return False

    def _tell(self, ticket: Ticket, outcome: Outcome, started: float) -> None:
        seconds, job = time.perf_counter() - started, ticket.job
        self._held.pace.note(job.pixels, seconds)
        self.planned_bytes = outcome.planned_bytes or 0
        queued = started - ticket.asked
        plan, planned = outcome.plan, outcome.planned_bytes
        self._observer.ran(Ran(self.model.name, op_of(job), job.pixels, queued, seconds, plan, planned))

    async def _revive(self, replica: Replica, again: Ticket | None) -> None:
        """Starts the process again, however often that takes; nobody waits for what may never come."""
        cause, pause = "hung" if replica.hung else "died", FIRST_PAUSE
        while not replica.ready:
            try:
                await replica.load()
            except RemoteVAEError as exc:
                self.failure = exc
                waiting = [] if self.alive else self.queue.empty()
                _fail(waiting if again is None else [again, *waiting], self._stopped_over())
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
