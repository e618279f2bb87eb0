"""A time limit that is set again and again."""

import asyncio
from collections.abc import Callable


class Timer:
    """Calls a function after some seconds, unless it is stopped before."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float, function: Callable[..., object], *arguments: object) -> None:
        self.stop()
        self._handle = asyncio.get_running_loop().call_later(seconds, function, *arguments)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
