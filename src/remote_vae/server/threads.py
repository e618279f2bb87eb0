"""Threads for work that would hold up the event loop: each kind of work has some, and waits for no other kind."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import partial
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Work(Enum):
    """A kind of work."""

    READ = "read"  # digests and JSON
    WRITE = "write"  # pictures and JSON
    FILM = "film"  # videos, which take seconds


COUNTS: Final[Mapping[Work, int]] = {Work.READ: 4, Work.WRITE: 4, Work.FILM: 2}


class Threads:
    """The threads of one server, which start when they are needed."""

    def __init__(self) -> None:
        self._pools = {kind: ThreadPoolExecutor(count, f"remote-vae-{kind.value}") for kind, count in COUNTS.items()}

    async def run(self, kind: Work, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `work`; the event loop serves other clients meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._pools[kind], partial(work, *args, **kwargs))
