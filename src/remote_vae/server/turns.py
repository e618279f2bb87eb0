"""Turns at something that only a few can use at once: each client that waits gets one, then the next client."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from remote_vae.errors import Overloaded

MOST_WAITING: Final = 64  # requests
NOBODY: Final = ""  # the name of all clients that have none


class Turns:
    """`count` turns, of which one client has at most all but one, so that another client need not wait.

    `share` is the part of `MOST_WAITING` that one client may have.
    """

    def __init__(self, count: int, *, share: float) -> None:
        self._left, self._most = count, max(1, count - 1)
        self._most_waiting = max(1, int(MOST_WAITING * share))
        self._running: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # who is next comes first

    @asynccontextmanager
    async def turn(self, client: str | None) -> AsyncIterator[None]:
        """Waits for a turn, and has it during the block. *Raises* Overloaded if too many wait."""
        name = client or NOBODY
        await self._wait(name)
        try:
            yield
        finally:
            self._take_back(name)

    async def _wait(self, client: str) -> None:
        own = len(self._waiting.get(client, ()))
        if own >= self._most_waiting or sum(map(len, self._waiting.values())) >= MOST_WAITING:
            raise Overloaded("too many pictures wait to be read; try again later")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._give()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(client, turn)
            else:  # the turn came in the same moment
                self._take_back(client)
            raise

    def _give(self) -> None:
        """Gives the turns that are left to those that may have them."""
        for client in list(self._waiting):
            turn = self._waiting[client][0]
            if self._left and self._running[client] < self._most and not turn.done():
                self._forget(client, turn)
                self._left -= 1
                self._running[client] += 1
                turn.set_result(None)

    def _forget(self, client: str, turn: asyncio.Future[None]) -> None:
        """The turn waits no longer; its client goes behind the others."""
        waiting = self._waiting.pop(client)
        waiting.remove(turn)
        if waiting:
            self._waiting[client] = waiting

    def _take_back(self, client: str) -> None:
        self._left += 1
        self._running -= Counter([client])  # which forgets a client that has none
        self._give()
