"""Frames on their way out of a job that is still at work: from the replica to the server, and to one reader there."""

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from multiprocessing.connection import Connection
from typing import Any, Final

from remote_vae.engine.job import Outcome

WAIT_SECONDS: Final = 0.2


class Handover:
    """The replica's side. A block lies in shared memory until the server has taken it; meanwhile the job goes on.

    The server says once for each block that it has taken it, and before that gets nothing else from the replica.
    """

    def __init__(self, pipe: Connection, beat: Callable[[], None]) -> None:
        self._pipe, self._beat = pipe, beat
        self._open = False

    def give(self, write: Callable[[], dict[str, Any]]) -> None:
        """Tells the server of a block, which `write` puts into shared memory when that is free."""
        self.wait()
        try:
            self._pipe.send_bytes(json.dumps({**write(), "more": True}).encode())
        except OSError:
            os._exit(0)  # the server is gone
        self._open = True

    def wait(self) -> None:
        """Returns when the shared memory is free. A replica that waits for a slow reader does not hang."""
        try:
            while self._open:
                if self._pipe.poll(WAIT_SECONDS):
                    self._pipe.recv_bytes()
                    self._open = False
                self._beat()
        except (EOFError, OSError):
            os._exit(0)


class Reel:
    """The server's side: blocks that wait for their reader. There is room while they have fewer than `most_bytes`.

    It has `begun` once it has a block, unless it `restarts`: then the frames may come again from the first one.
    """

    def __init__(self, most_bytes: int, *, restarts: bool = False) -> None:
        self._most_bytes, self._restarts = most_bytes, restarts
        self._blocks: deque[Outcome] = deque()
        self._changed = asyncio.Event()
        self._closed = False
        self.begun = False
        self.waited = 0.0  # seconds for the reader

    @property
    def _bytes(self) -> int:
        return sum(memoryview(block.tensor.buffer).nbytes for block in self._blocks)

    async def put(self, block: Outcome) -> None:
        """Returns when there is room again, or nobody reads any more."""
        started, self.begun = time.perf_counter(), not self._restarts
        self._blocks.append(block)
        self._wake()
        while self._bytes >= self._most_bytes and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        self.waited += time.perf_counter() - started

    def close(self) -> None:
        """No more blocks come."""
        self._closed = True
        self._wake()

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        """The blocks until it is closed."""
        while self._blocks or not self._closed:
            if self._blocks:
                self._wake()
                yield self._blocks.popleft()
            else:
                self._changed.clear()
                await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
