"""A reply of unknown length on its way through Ray, which would collect all of it if its client did not read.

Between a replica and Ray's proxy lie queues without a bound. So the proxy says what the client has taken, among the
messages of the request, and the replica waits while too much is on the way. A reply whose length is known was computed
before it is sent, so nothing would be gained if it waited.
"""

import asyncio
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remote_vae.errors import MalformedRequest
from remote_vae.protocol.wire import TIMEOUT_HEADER

TAKEN: Final = "remote_vae.taken"  # a message of the proxy's, and the extension by which it promises such messages
MOST_BYTES: Final = 4 << 20  # on the way; Ray's memory for objects is shared by all replies of a machine
# Ray's proxy would end a request itself after the client's time for it, without the error that says so.
_RENAMED: Final = {TIMEOUT_HEADER.encode(): b"x-remote-vae-seconds"}


def to_replica(scope: Scope) -> Scope:
    """The scope of a request that Ray passes on, with the promise to say what the client has taken."""
    extensions = {**(scope.get("extensions") or {}), TAKEN: {}}
    headers = [(_RENAMED.get(name, name), value) for name, value in scope.get("headers", ())]
    return {**scope, "extensions": extensions, "headers": headers}


def promised(scope: Scope) -> bool:
    """Whether the proxy says what the client has taken."""
    return TAKEN in (scope.get("extensions") or {})


def as_sent(scope: Scope) -> Scope:
    """The scope with the names of the headers that the client has sent."""
    names = {renamed: name for name, renamed in _RENAMED.items()}
    return {**scope, "headers": [(names.get(name, name), value) for name, value in scope.get("headers", ())]}


class Reporting:
    """Pure ASGI, around Ray's proxy: promises its replica to say what the client has taken, and says it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        side = ProxySide(receive, send)
        try:
            await self._app(to_replica(scope), side.receive, side.send)
        finally:
            side.close()


class ProxySide:
    """What the client has taken goes among the messages that Ray fetches for the replica."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None
        self._counts = False

    async def receive(self) -> Message:
        """The next message for the replica. Ray takes all that come, without a pause."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        return await self._messages.get()

    async def _read(self) -> None:
        more = True
        while more:
            message = await self._receive()
            self._messages.put_nowait(message)
            more = message["type"] != "http.disconnect"

    def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    async def send(self, message: Message) -> None:
        """Returns when the HTTP server wants more, and then the client has taken nearly all that came before."""
        if message["type"] == "http.response.start":
            self._counts = _has_no_length(message)
        await self._send(message)
        if self._counts and (count := len(message.get("body", b""))):
            self._messages.put_nowait({"type": TAKEN, "bytes": count})


class ReplicaSide:
    """Waits for the client, which counts as gone if it takes nothing for `patience` seconds."""

    def __init__(self, receive: Receive, send: Send, *, patience: float) -> None:
        self._receive, self._send, self._patience = receive, send, patience
        self._changed = asyncio.Event()
        self._on_way = 0
        self._counts = False

    async def receive(self) -> Message:
        """The next message of the client's own. What is taken is learnt only while somebody waits here."""
        while (message := await self._receive())["type"] == TAKEN:
            self._on_way -= message["bytes"]
            self._changed.set()
        return message

    async def send(self, message: Message) -> None:
        """Returns when there is room for more. *Raises* MalformedRequest if there is none for too long."""
        if message["type"] == "http.response.start":
            self._counts = _has_no_length(message)
        await self._send(message)
        if self._counts:
            self._on_way += len(message.get("body", b""))
            while self._on_way > MOST_BYTES:
                await self._wait()

    async def _wait(self) -> None:
        self._changed.clear()
        try:
            async with asyncio.timeout(self._patience):
                await self._changed.wait()
        except TimeoutError:
            text = f"the client has read nothing of its reply for {self._patience:g} s"
            raise MalformedRequest(text, gone=True) from None


def _has_no_length(start: Message) -> bool:
    return "content-length" not in Headers(raw=start["headers"])
