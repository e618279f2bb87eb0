"""One model's replicas, which share a queue: loaded, replaced when they die, and unloaded."""

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from remote_vae.core.recipe import Recipe
from remote_vae.core.vae_info import VAEInfo
from remote_vae.engine.admission import InHand
from remote_vae.engine.container import available_cores
from remote_vae.engine.job import Outcome, op_of
from remote_vae.engine.lease import Lease
from remote_vae.engine.ledger import Ledger
from remote_vae.engine.observer import ModelState, Observer, Ran
from remote_vae.engine.place import Loaded, Place
from remote_vae.engine.poison import Poison
from remote_vae.engine.queue import Queue, Ticket
from remote_vae.engine.replica import Replica, ReplicaLost
from remote_vae.errors import NotReady, RemoteVAEError, ReplicaFailed

LOG: Final = logging.getLogger("remote_vae.engine")
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts to start a process that does not start


@dataclass(frozen=True, slots=True)
class Served:
    """A model as the server knows it before it is loaded; each of `specs` is what the loader of one replica gets.

    A lazy model is loaded by the first request for it; a pinned one is never unloaded to make room for another.
    """

    name: str
    aliases: tuple[str, ...]
    recipe: Recipe
    specs: tuple[dict[str, object], ...]
    lazy: bool = False
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """A replica counts as hung if its job makes no progress for `hang_seconds`."""

    hang_seconds: float = 100.0


class Pool:
    """Takes tickets; every replica has a task that takes the next one whenever it is free."""

    def __init__(
        self, model: Served, *, loader: str, rules: Rules, held: InHand, observer: Observer, ledger: Ledger, entry: int
    ) -> None:
        self.model = model
        self.info: VAEInfo | None = None  # kept when the model is unloaded, like the next two
        self.places: tuple[Place, ...] = ()
        self.load_seconds = 0.0
        self.put_away = False  # it was loaded, and was unloaded because it was idle or its room was wanted
        self.used = time.monotonic()
        self.failure: RemoteVAEError | None = None
        self.restarts = 0
        self.planned_bytes = 0
        self.queue = Queue()
        self.poison = Poison()
        self.replicas: list[Replica] = []
        self._loader, self._rules, self._held, self._observer = loader, rules, held, observer
        self._ledger, self._entry = ledger, entry  # of its first replica; the others' entries follow
        self._loading = asyncio.Lock()
        self._at_work: list[Ticket] = []
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
        return not self._at_work and not len(self.queue)

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

    def told(self) -> Loaded:
        return Loaded(self.model.name, self.info, self.places, self.load_seconds)

    def position(self, ticket: Ticket) -> tuple[int, float]:
        """The place of a ticket in the queue, 1 for the next one, and the expected seconds until it is done.

        The jobs that run count in full; a later job of another client may still come before it.
        """
        before, pace = self.queue.before(ticket), self._held.pace
        waiting = sum(pace.seconds(each.job.pixels) for each in (*before, *self._at_work, ticket))
        return len(before) + 1, waiting

    async def load(self) -> None:
        """Starts all replicas, one after the other: two loading at once only fight for the disk and memory.

        *Raises* what the loader raises; then nothing is left running.
        """
        async with self._loading:
            if self.loaded:
                return
            started = time.perf_counter()
            try:
                for number, spec in enumerate(self.model.specs):
                    if self._stopped:  # perhaps since the replica before this one began to load
                        raise NotReady("the server is shutting down and takes no more work")
                    replica = Replica(
                        self.model.name,
                        loader=self._loader,
                        spec=spec,
                        cores=max(1, available_cores() // len(self.model.specs)),
                        ledger=self._ledger,
                        entry=self._entry + number,
                        on_lost=self.queue.wake,
                    )
                    self.replicas.append(replica)
                    self.info = await replica.load()
            except BaseException as exc:
                self.failure = exc if isinstance(exc, RemoteVAEError) else None
                await self._stop_replicas()
                if isinstance(exc, RemoteVAEError) or not isinstance(exc, Exception):
                    raise
                LOG.exception("a model could not be loaded", extra={"model": self.model.name})
                raise ReplicaFailed(f"no process could be started for model {self.model.name!r}") from exc
            self.failure, self.load_seconds = None, time.perf_counter() - started
            self.put_away, self.used = False, time.monotonic()
            self.places = tuple(replica.place for replica in self.replicas if replica.place)
            self._held.pace.replicas = len(self.replicas)
            self._tasks = [asyncio.create_task(self._serve(replica)) for replica in self.replicas]

    async def put_aside(self, cause: str) -> None:
        """Unloads the model until it is wanted again; `cause` is "idle" or "budget"."""
        self.put_away = True
        await self.unload()
        LOG.info("a model was unloaded", extra={"model": self.model.name, "cause": cause})
        self._observer.unloaded(self.model.name, cause)

    async def unload(self) -> None:
        """Ends the processes; jobs that still wait get ReplicaFailed."""
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
            replica.give_up()  # so that nothing waits for its answer, or until it has loaded
        await self.unload()

    def kill(self) -> None:
        """Ends the processes at once."""
        for replica in self.replicas:
            replica.free()

    async def _stop_replicas(self) -> None:
        replicas, self.replicas = self.replicas, []
        for error in await asyncio.gather(*(replica.stop() for replica in replicas), return_exceptions=True):
            if error is not None:
                LOG.error("a replica did not stop in good order", exc_info=error, extra={"model": self.model.name})

    async def _serve(self, replica: Replica) -> None:
        """Runs until the replica is closed. An exception in here fails one job at most, and never ends the loop."""
        ticket: Ticket | None = None  # the job at hand; after a death, the one that is tried once more
        try:
            while not replica.closed:
                try:
                    if not replica.ready:
                        await self._revive(replica, ticket)
                        continue
                    ticket = ticket or await self.queue.take(lambda: replica.ready)
                    ticket = await self._run(replica, ticket) if ticket is not None and ticket.wanted else None
                except Exception:  # boundary: nothing but the pool itself may end this loop
                    LOG.exception("the loop that feeds a replica failed", extra={"model": self.model.name})
                    _fail([ticket], self._stopped_over())
                    ticket = None
                    await asyncio.sleep(FIRST_PAUSE)
        finally:
            _fail([ticket], self._stopped_over())

    async def _run(self, replica: Replica, ticket: Ticket) -> Ticket | None:
        """Answers the ticket, or returns it if it is to be tried once more because the process has died."""
        started = time.perf_counter()
        self._at_work.append(ticket)
        try:
            expected = self._held.pace.seconds(ticket.job.pixels) * self._held.pace.replicas
            outcome = await Lease(replica, ticket, hang_seconds=self._rules.hang_seconds, expected=expected).run()
        except ReplicaLost:
            return ticket if self._deserves_another(replica, ticket) else None
        except RemoteVAEError as exc:
            _fail([ticket], exc)
        except Exception:  # boundary: no memory for a copy, say; to start afresh, the replica is replaced
            LOG.exception("a job failed on its way", extra=self._named(ticket))
            _fail([ticket], self._stopped_over())
            replica.hang_up()
            return None
        else:
            if ticket.wanted:
                seconds = {"queue": started - ticket.asked, **outcome.seconds}
                ticket.answer.set_result(replace(outcome, seconds=seconds))
            self._tell(ticket, outcome, started)
        finally:
            self._at_work.remove(ticket)
            self.used = time.monotonic()
        self.poison.acquit(ticket.job)
        return None

    def _deserves_another(self, replica: Replica, ticket: Ticket) -> bool:
        cause = "hung" if replica.hung else "died"
        LOG.error("a replica was lost over a request", extra=self._named(ticket) | {"cause": cause})
        poisoned = self.poison.blame(ticket.job, hung_seconds=self._rules.hang_seconds if replica.hung else None)
        if poisoned is None and not ticket.reel.begun:
            return ticket.wanted
        _fail([ticket], poisoned or self._stopped_over())
        return False

    def _named(self, ticket: Ticket) -> dict[str, str]:
        return {"model": self.model.name, "request_id": ticket.request_id}

    def _tell(self, ticket: Ticket, outcome: Outcome, started: float) -> None:
        seconds, job = time.perf_counter() - started - ticket.reel.waited, ticket.job
        self._held.pace.note(job.pixels, seconds)
        self.planned_bytes = outcome.planned_bytes or 0
        queued = started - ticket.asked
        plan, planned = outcome.plan, outcome.planned_bytes
        self._observer.ran(Ran(self.model.name, op_of(job), job.pixels, queued, seconds, plan, planned))

    async def _revive(self, replica: Replica, again: Ticket | None) -> None:
        """Starts the process again, however often that takes; jobs that it cannot serve for now are told so at once."""
        cause, pause = "hung" if replica.hung else "died", FIRST_PAUSE
        while not replica.ready and not replica.closed:
            try:
                await replica.load()
            except Exception as exc:  # boundary: from the loader's own errors to a system without memory for a process
                self.failure = exc if isinstance(exc, RemoteVAEError) else self._stopped_over()
                text = f"a replica could not be started: {self.failure.message}"
                LOG.warning(text, exc_info=exc, extra={"model": self.model.name})
                _fail([again, *([] if self.alive else self.queue.empty())], self._stopped_over())
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        if replica.ready:
            self.failure = None
            self.restarts += 1
            self._observer.restarted(self.model.name, cause)

    def _stopped_over(self) -> ReplicaFailed:
        return ReplicaFailed(f"the process of model {self.model.name!r} ended over this request; try again")


def _fail(tickets: Iterable[Ticket | None], error: RemoteVAEError) -> None:
    for ticket in tickets:
        if ticket is not None and ticket.wanted:
            ticket.answer.set_exception(error)
