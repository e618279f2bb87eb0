"""The events of a job as a reply: one whenever something has changed, until the job is over."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from remote_vae.server.jobs import Job

LOOK_SECONDS: Final = 0.25
QUIET_SECONDS: Final = 10.0  # after which a comment says that the connection lives
SEND_SECONDS: Final = 10.0  # that a client has to take an event
HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "x-accel-buffering": "no",  # nginx would keep events until the job is over
}


class EventStream(Response):
    """Ends with the job, if the client goes away, and if the client does not read; then calls `on_end`."""

    def __init__(self, job: Job, *, on_end: Callable[[], None]) -> None:
        super().__init__(b"", 200)
        self._job, self._on_end = job, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = {asyncio.ensure_future(self._write(send)), asyncio.ensure_future(_gone(receive))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            self._on_end()

    async def _write(self, send: Send) -> None:
        head = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        last, quiet = b"", 0.0
        while not self._job.over.is_set():
            event = self._job.event()
            quiet = 0.0 if event != last or quiet >= QUIET_SECONDS else quiet + LOOK_SECONDS
            if quiet == 0.0:
                await _send(send, event if event != last else b": still here\n\n", more=True)
            last = event
            with suppress(TimeoutError):
                await asyncio.wait_for(self._job.over.wait(), LOOK_SECONDS)
        await _send(send, self._job.event(), more=False)


async def _send(send: Send, event: bytes, *, more: bool) -> None:
    """*Raises* TimeoutError if the client does not read, which ends the connection."""
    async with asyncio.timeout(SEND_SECONDS):
        await send({"type": "http.response.body", "body": event, "more_body": more})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass  # a body, which has no meaning here
