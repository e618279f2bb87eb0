"""The jobs that wait for a replica of their model, and the order in which they run."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from remote_vae.engine.job import WAITING_BYTES, Job, Outcome
from remote_vae.engine.progress import JobProgress
from remote_vae.engine.relay import Reel


@dataclass(eq=False, slots=True)
class Ticket:
    """A job, its client, and a future for the answer. A future that is done before means that nobody waits any more."""

    job: Job
    client: str | None
    answer: asyncio.Future[Outcome]
    request_id: str = ""
    asked: float = field(default_factory=time.perf_counter)
    due: int = 0
    progress: JobProgress = field(default_factory=JobProgress)
    reel: Reel = field(default_factory=lambda: Reel(WAITING_BYTES))  # for what is handed over before the answer

    @property
    def wanted(self) -> bool:
        return not self.answer.done()


class Queue:
    """The client that was served the fewest pixels is next; the jobs of one client are ordered by size.

    A job of N pixels is due once N pixels of its client have been served since it came. So small jobs pass a large
    one, but together they have at most as many pixels as the large one, which therefore never starves.
    """

    def __init__(self) -> None:
        self._waiting: list[Ticket] = []
        self._served: dict[str | None, int] = defaultdict(int)
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def pixels(self) -> int:
        return sum(ticket.job.pixels for ticket in self._waiting)

    def before(self, ticket: Ticket) -> list[Ticket]:
        """The tickets that would be taken before this one if no other ticket came."""
        place = self._place(ticket)
        return [other for other in self._waiting if other.wanted and self._place(other) < place]

    def put(self, ticket: Ticket) -> None:
        if not any(other.client == ticket.client for other in self._waiting):
            self._join(ticket.client)
        ticket.due = self._served[ticket.client] + ticket.job.pixels
        self._waiting.append(ticket)
        ticket.answer.add_done_callback(lambda _: self._drop(ticket))
        self.wake()

    async def take(self, wanted: Callable[[], bool]) -> Ticket | None:
        """Waits for the next job; returns None if `wanted` returns False, which is asked again at each `wake`."""
        while wanted():
            self._waiting = [ticket for ticket in self._waiting if ticket.wanted]
            if self._waiting:
                return self._next()
            self._wake.clear()
            await self._wake.wait()
        return None

    def wake(self) -> None:
        self._wake.set()

    def empty(self) -> list[Ticket]:
        """Removes and returns all tickets."""
        left, self._waiting = self._waiting, []
        return left

    def _next(self) -> Ticket:
        """Removes the next ticket in order, and counts its pixels as served."""
        ticket = min(self._waiting, key=self._place)
        self._waiting.remove(ticket)
        self._served[ticket.client] += ticket.job.pixels
        return ticket

    def _place(self, ticket: Ticket) -> tuple[int, int]:
        return self._served[ticket.client], ticket.due

    def _join(self, client: str | None) -> None:
        """Admits a client that had no job waiting. It gets no credit for that time, and keeps its earlier excess."""
        here = {ticket.client for ticket in self._waiting}
        least = min((self._served[name] for name in here), default=None)
        if least is None:
            self._served.clear()
            return
        kept = {name: pixels for name, pixels in self._served.items() if name in here or pixels > least}
        self._served = defaultdict(int, kept)
        self._served[client] = max(self._served[client], least)

    def _drop(self, ticket: Ticket) -> None:
        if ticket in self._waiting:
            self._waiting.remove(ticket)
