"""Unfinished requests by owner and id: they can be watched and cancelled, and are forgotten when they are over."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from remote_vae.engine.progress import JobProgress, State
from remote_vae.errors import InternalError, JobCancelled, RemoteVAEError, TooManyRequests, UnknownJob
from remote_vae.server.record import Record

SHORTEST_ID: Final = 16  # characters: without keys, others at the same address could guess shorter ones
MOST_STREAMS: Final = 256
MOST_STREAMS_OF_ONE: Final = 64


class Job:
    """A request from its head to its reply. Once it is over, nothing of the request is held here."""

    def __init__(self) -> None:
        self.progress = JobProgress()
        self.cancelled, self.over = asyncio.Event(), asyncio.Event()
        self._error = ""

    def event(self) -> bytes:
        """A server-sent event with what is known now."""
        look = self.progress.look()
        known: dict[str, object] = {"state": look.state, "position": look.position}
        known |= {"done": look.done, "total": look.total, "error_type": self._error or None}
        if look.seconds_left is not None:
            known["seconds_left"] = round(look.seconds_left, 1)
        text = json.dumps({name: value for name, value in known.items() if value is not None})
        return f"data: {text}\n\n".encode()

    def end(self, error: BaseException | None) -> None:
        """The job is over, and for what error if there is one."""
        ours = error if isinstance(error, RemoteVAEError) else None
        state = State.FINISHED if error is None else State.FAILED
        if isinstance(error, JobCancelled | asyncio.CancelledError) or (ours and ours.detail.get("gone")):
            state = State.CANCELLED
        self.progress.become(state)
        self._error = "" if error is None else (ours or InternalError).code
        self.over.set()


class Jobs:
    """The jobs of one server. A client sees and cancels its own jobs only; for all others there are none."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[str, str], list[Job]] = {}
        self._streams: Counter[str] = Counter()

    @contextmanager
    def entered(self, record: Record, client: str | None) -> Iterator[Job]:
        """A job that can be found by the ids of its request during the block."""
        job, ids = Job(), {record.request_id, record.call_id}
        keys = [(client or "", each) for each in ids if len(each) >= SHORTEST_ID]
        for key in keys:
            self._jobs.setdefault(key, []).append(job)
        error: BaseException | None = None
        try:
            yield job
        except BaseException as exc:
            error = exc
            raise
        finally:
            job.end(error)
            del error  # its frames hold the request
            for key in keys:
                self._jobs[key].remove(job)
                if not self._jobs[key]:
                    del self._jobs[key]

    def find(self, client: str | None, request_id: str) -> list[Job]:
        """The client's jobs with this id, the latest last. *Raises* UnknownJob."""
        found = self._jobs.get((client or "", request_id))
        if not found:
            raise UnknownJob(
                "no unfinished request of yours has this id; the id is the request's x-request-id or x-call-id, has at "
                f"least {SHORTEST_ID} characters, and is forgotten when the reply is ready"
            )
        return list(found)

    def enter_stream(self, client: str | None) -> None:
        """Counts a stream of events. *Raises* TooManyRequests."""
        name = client or ""
        if self._streams[name] >= MOST_STREAMS_OF_ONE or self._streams.total() >= MOST_STREAMS:
            raise TooManyRequests("too many jobs are watched at a time; watch fewer of them", retry_after=1)
        self._streams[name] += 1

    def leave_stream(self, client: str | None) -> None:
        self._streams -= Counter([client or ""])  # which forgets a client that has none
