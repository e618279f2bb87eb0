"""A watched call: what the server says about its job is told to the caller's function while the call waits.

The server is asked over a connection of its own, and only if the call takes longer than a moment. Whatever happens to
that connection, the call goes on; then the function hears nothing new.
"""

import asyncio
import json
import math
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import httpx2

from remote_vae.client.exchange import POLL_SECONDS, Deadline, HttpRequest, Poll, nothing
from remote_vae.client.network import BlockingNetwork, Network, run
from remote_vae.errors import InvalidReply, UnknownJob

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0  # seconds before the server is asked again
LARGEST_EVENT: Final = 64 * 1024  # bytes
UNDER_WAY: Final = ("arriving", "queued", "running", "writing")
NOT_NOW: Final = (429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class CallProgress:
    """How far a call is.

    `state` is "sent" until the server says more, then one of "arriving", "queued", "running" and "writing", and
    "finished" at the end. `position` is the place in the queue, 1 for the next job; `done` of `total` are steps of the
    VAE. A batch that goes in parts has `parts` jobs, of which `part`, from 0, is under way. *Units*: seconds.
    """

    state: str = "sent"
    position: int | None = None
    done: int | None = None
    total: int | None = None
    seconds_left: float | None = None
    part: int = 0
    parts: int = 1

    @property
    def share(self) -> float | None:
        """How much of the whole call is done, from 0 to 1; None if nothing is known."""
        if self.state == "finished":
            return 1.0
        own = 1.0 if self.state == "writing" else (self.done or 0) / self.total if self.total else None
        return (self.part + (own or 0.0)) / self.parts if self.part or own is not None else None


Tell: TypeAlias = Callable[[CallProgress], object]


class _CallIsOver(BaseException):
    """Ends the thread that watches."""


class _Refused(BaseException):
    """Carries what the caller's function raised past everything that handles errors of the network."""


class Watch:
    """Watches the job of one request, by the request for its events, until `over` is set."""

    def __init__(self, tell: Tell, events: HttpRequest, *, deadline: Deadline, part: int, parts: int) -> None:
        self.deadline, self.over = deadline, threading.Event()
        self._tell, self._events = tell, events
        self._known = CallProgress(part=part, parts=parts)
        self._next = time.monotonic() + POLL_SECONDS

    def is_due(self) -> bool:
        """Whether it is time to tell the caller's function, which is once in `POLL_SECONDS`."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + POLL_SECONDS
        return True

    def tell(self) -> None:
        self._tell(self._known)

    def learn(self, event: bytes) -> None:
        """Takes the data of an event; what cannot be read is ignored, and so is the end, which the reply tells."""
        try:
            found = json.loads(event)
        except (ValueError, RecursionError):
            return
        if isinstance(found, dict) and found.get("state") in UNDER_WAY:
            position, done, total = (_count(found.get(name)) for name in ("position", "done", "total"))
            left, known = _seconds(found.get("seconds_left")), self._known
            self._known = CallProgress(found["state"], position, done, total, left, known.part, known.parts)

    def check(self) -> None:
        if self.over.is_set():
            raise _CallIsOver

    async def follow(self, network: Network) -> None:
        """Reads the job's events, again and again, until the call is over or the server cannot tell."""
        pause = FIRST_PAUSE
        with suppress(_CallIsOver):
            while True:
                reader = _EventReader(self)
                with suppress(Exception):  # boundary: watching must not end a call, whatever fails
                    await network.exchange(self._events, reader)
                if reader.is_hopeless():
                    return
                await network.sleep(pause, self.check)
                pause = min(2 * pause, LONGEST_PAUSE)


class _EventReader:
    """Gives the events of a stream to a watch, and finds out whether asking again is any use."""

    def __init__(self, watch: Watch) -> None:
        self.deadline, self.poll = watch.deadline, watch.check
        self._learn = watch.learn
        self._status, self._is_stream, self._rest = 0, False, b""

    def begin(self, response: httpx2.Response) -> None:
        self._status = response.status_code
        self._is_stream = response.headers.get("content-type", "").startswith("text/event-stream")

    def take(self, chunk: bytes) -> None:
        """*Raises* InvalidReply for an event that is too long."""
        self._rest += chunk
        if self._is_stream and self._status == 200:
            *lines, self._rest = self._rest.split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    self._learn(line.removeprefix(b"data:"))
        if len(self._rest) > LARGEST_EVENT:
            raise InvalidReply(f"an event is longer than {LARGEST_EVENT} bytes", limit=LARGEST_EVENT)

    def is_hopeless(self) -> bool:
        """A job can be unknown because it has not arrived yet, or is sent again."""
        if self._status in (0, *NOT_NOW) or (self._status == 200 and self._is_stream):
            return False
        return self._status != UnknownJob.status or UnknownJob.code.encode() not in self._rest


async def attended(network: Network, call: Callable[[Poll], Coroutine[Any, Any, T]], watch: Watch) -> T:
    """The result of a call that polls while it waits; what the caller's function raises ends the call."""
    if isinstance(network, BlockingNetwork):
        return await _in_this_thread(network, call, watch)
    task, follower = asyncio.ensure_future(call(nothing)), None
    try:
        while not (await asyncio.wait({task}, timeout=POLL_SECONDS))[0]:
            follower = follower or asyncio.ensure_future(watch.follow(network))
            watch.tell()
        return await task
    finally:
        tasks = [each for each in (task, follower) if each is not None]
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _in_this_thread(network: BlockingNetwork, call: Callable[[Poll], Coroutine[Any, Any, T]], watch: Watch) -> T:
    """Of a call that blocks: another thread reads the events, and this one tells them while it waits."""
    follower = threading.Thread(target=lambda: run(watch.follow(network)), name="remote-vae-watch", daemon=True)

    def poll() -> None:
        if not watch.is_due():
            return
        if follower.ident is None:
            follower.start()
        try:
            watch.tell()
        except BaseException as exc:
            raise _Refused(exc) from exc

    try:
        return await call(poll)
    except _Refused as refused:
        raise refused.args[0] from None
    finally:
        watch.over.set()


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _seconds(value: object) -> float | None:
    is_number = isinstance(value, float) or _count(value) is not None
    return float(value) if is_number and 0 <= value < math.inf else None  # type: ignore[arg-type,operator]
