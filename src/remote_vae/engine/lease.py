"""One job at one replica, from sending it to its answer."""

import asyncio
import logging
from typing import Any, Final

from remote_vae.engine.job import Job, Outcome, op_of, tensor_of, to_message
from remote_vae.engine.queue import Ticket
from remote_vae.engine.replica import Replica, ReplicaLost
from remote_vae.errors import from_json
from remote_vae.values import Tensor

LOG: Final = logging.getLogger("remote_vae.engine")
LARGE_BYTES: Final = 1 << 20  # to copy this many takes a fraction of a millisecond; more is copied by a thread
WATCH_SECONDS: Final = 1.0


class Lease:
    """Owns the job's serial number, its timers and the replica's shared memory, until `run` returns.

    Nobody else can stop the job, and a stop that comes after `run` has returned stops no other job.
    """

    def __init__(self, replica: Replica, ticket: Ticket, *, hang_seconds: float, expected: float = 0.0) -> None:
        self._replica, self._ticket, self._hang_seconds = replica, ticket, hang_seconds
        self._loop = asyncio.get_running_loop()
        self._expected = expected  # seconds, 0 if nothing like this job has been measured
        self._serial, self._seen = 0, (0, 0.0)
        self._progressed = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> Outcome:
        """*Raises* what the job raised in the replica, ReplicaLost, Overloaded if there is no shared memory for it."""
        self._serial, signals = self._replica.begin(), self._replica.signals
        signals.tell(0, 0)
        self._ticket.progress.run(lambda: signals.steps, expected=self._expected)
        self._watch_later()  # most jobs are over before the first look, which takes a tenth of a millisecond
        self._ticket.answer.add_done_callback(self._stop)
        try:
            return await self._run(self._ticket.job)
        finally:
            self._ticket.progress.stop()
            self._ticket.answer.remove_done_callback(self._stop)
            if self._timer is not None:
                self._timer.cancel()
            self._replica.finish()

    async def _run(self, job: Job) -> Outcome:
        tensor, segments = memoryview(tensor_of(job).buffer).cast("B"), self._replica.segments
        room = job.block_bytes or job.reply_bytes
        large = max(tensor.nbytes, room) > LARGE_BYTES
        source, target = await self._replica.off_loop(large, segments.prepare, tensor, room)
        told = await self._replica.ask({"serial": self._serial, "in": source, "out": target, **to_message(job)})
        while told.get("more"):
            await self._ticket.reel.put(await self._outcome(told))
            told = await self._replica.ask({"taken": self._serial})
        self._log(told)
        if told.get("fatal"):
            self._replica.hang_up()
            raise ReplicaLost
        if "error" in told:
            raise from_json(told["error"], status=0)
        return await self._outcome(told)

    async def _outcome(self, told: dict[str, Any]) -> Outcome:
        """What was told, with a copy of what lies in shared memory."""
        nbytes: int = told["nbytes"]
        found = await self._replica.off_loop(nbytes > LARGE_BYTES, self._replica.segments.read, nbytes)
        return Outcome(
            Tensor(told["dtype"], tuple(told["shape"]), found),
            told["plan"],
            told["dtype_run"],
            told["note"],
            {op_of(self._ticket.job): float(told["seconds"])},
            told["planned_bytes"],
            told["first"],
        )

    def _log(self, told: dict[str, Any]) -> None:
        """An exception of the model's code: its type and where it was raised, but not what it says."""
        if "exception" in told:
            fields = {name: told[name] for name in ("exception", "frames")}
            fields |= {"model": self._replica.name, "request_id": self._ticket.request_id}
            LOG.error("the model's code failed on a request", extra=fields)

    def _stop(self, _: object) -> None:
        """Nobody waits for the answer any more: the replica ends the job at its next checkpoint."""
        self._replica.signals.stop(self._serial)

    def _watch(self) -> None:
        """Looks for progress once a second, and kills the process if there has been none for too long.

        One layer of a large video can take minutes on a CPU. So computing is progress too, as long as somebody waits.
        """
        computed = self._replica.cpu_seconds if self._ticket.wanted else 0.0
        seen, now = (self._replica.signals.beats, computed), self._loop.time()
        if seen != self._seen:
            self._seen, self._progressed = seen, now
        elif now - self._progressed >= self._hang_seconds:
            self._replica.kill()
            return
        self._watch_later()

    def _watch_later(self) -> None:
        self._timer = self._loop.call_later(min(WATCH_SECONDS, self._hang_seconds / 4), self._watch)
