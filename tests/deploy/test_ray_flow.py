"""Replies of unknown length between a replica and Ray's proxy, in which nothing has a bound."""

import asyncio
import pickle
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remote_vae.deploy.ray_flow import MOST_BYTES, Reporting
from remote_vae.deploy.ray_serve import Hosted
from remote_vae.errors import MalformedRequest

PIECE, PIECES = 1 << 20, 32


class Producer:
    """An application whose reply has many pieces; like ours it waits for the client's end meanwhile."""

    def __init__(self, *headers: tuple[bytes, bytes]) -> None:
        self.made = 0
        self._headers = list(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"latent"
        gone = asyncio.ensure_future(receive())
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        for number in range(PIECES):
            await send({"type": "http.response.body", "body": bytes([number]) * PIECE, "more_body": True})
            self.made += 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        gone.cancel()


class Between:
    """A proxy that passes messages on as Ray does: those of both directions are pickled and collected."""

    def __init__(self, replica: ASGIApp) -> None:
        self._replica = replica
        self.failure: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        there: asyncio.Queue[bytes] = asyncio.Queue()
        back: asyncio.Queue[bytes] = asyncio.Queue()

        async def fetch() -> None:
            while True:
                there.put_nowait(pickle.dumps(await receive()))

        async def take() -> Message:
            message: Message = pickle.loads(await there.get())
            return message

        async def put(message: Message) -> None:
            back.put_nowait(pickle.dumps(message))

        async def run() -> None:
            try:
                await self._replica(pickle.loads(pickle.dumps(scope)), take, put)
            except MalformedRequest as exc:
                self.failure = exc
            back.put_nowait(pickle.dumps(None))

        tasks = [asyncio.ensure_future(fetch()), asyncio.ensure_future(run())]
        try:
            while message := pickle.loads(await back.get()):
                await send(message)
        finally:
            for task in tasks:
                task.cancel()


class Client:
    """Takes messages while it `reads`."""

    def __init__(self) -> None:
        self.reads, self.came = asyncio.Event(), list[bytes]()
        self._sends: Iterator[Message] = iter([{"type": "http.request", "body": b"latent", "more_body": False}])

    async def receive(self) -> Message:
        for message in self._sends:
            return message
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.came.append(message.get("body", b""))


def asked(client: Client, between: Any) -> asyncio.Task[None]:
    return asyncio.ensure_future(Reporting(between)({"type": "http", "path": "/"}, client.receive, client.send))


async def test_a_client_that_stops_and_reads_on() -> None:
    """The application waits when some megabytes are on the way, and then every byte comes."""
    producer, client = Producer(), Client()
    between = Between(Hosted(producer, None, patience=60))  # type: ignore[arg-type]
    task = asked(client, between)
    while producer.made < MOST_BYTES // PIECE:
        await asyncio.sleep(0)
    for _ in range(1000):  # turns of the event loop in which nothing more is made
        await asyncio.sleep(0)
    assert producer.made <= MOST_BYTES // PIECE
    client.reads.set()
    await task
    assert b"".join(client.came) == b"".join(bytes([number]) * PIECE for number in range(PIECES))
    assert between.failure is None


async def test_a_client_that_stops_for_good() -> None:
    """Its reply ends after the time for it, in the replica too."""
    producer = Producer()
    between = Between(Hosted(producer, None, patience=0.05))  # type: ignore[arg-type]
    task = asked(Client(), between)
    while between.failure is None:
        await asyncio.sleep(0.01)
    assert "has read nothing" in str(between.failure)
    assert producer.made <= MOST_BYTES // PIECE
    task.cancel()


async def test_a_reply_that_is_there_already() -> None:
    """A reply whose length is known is handed on at once, whatever its client reads."""
    producer = Producer((b"content-length", str(PIECE * PIECES).encode()))
    task = asked(Client(), Between(Hosted(producer, None, patience=60)))  # type: ignore[arg-type]
    while producer.made < PIECES:
        await asyncio.sleep(0)
    task.cancel()


async def test_the_time_of_a_client() -> None:
    """The client's deadline reaches the replica, whose error says so, and not Ray, which would end the connection."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["headers"])

    async def ray(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["headers"])
        await Hosted(app, None, patience=1)(scope, receive, send)  # type: ignore[arg-type]

    headers, client = [(b"accept", b"*/*"), (b"x-request-timeout-seconds", b"4")], Client()
    await Reporting(ray)({"type": "http", "path": "/", "headers": headers}, client.receive, client.send)
    assert b"x-request-timeout-seconds" not in dict(seen[0])
    assert seen[1] == headers
