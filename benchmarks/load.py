"""A load on a server, and what came back: open, at times fixed in advance, or closed, by so many clients.

In an open load a request leaves when its time has come, whatever became of those before it, and its latency counts from
that time. A load that waits for answers slows down with the server and so hides what its callers would suffer.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Final
from urllib.parse import urlsplit

PROBE_SECONDS: Final = 0.1
PATIENCE_SECONDS: Final = 120.0
REFUSED: Final = (429, 503)


@dataclass(frozen=True, slots=True)
class Shot:
    """A whole HTTP request, and the body of the answer that it got when it was sent alone."""

    request: bytes
    expected: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """*Units*: seconds since the load began, of the end; `latency` since the intended time. `status` 0 was lost."""

    status: int
    right: bool
    retry_after: bool
    latency: float
    ended: float


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


class Target:
    """A server, and the connections to it that are kept alive."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: bytes) -> Reply:
        """*Raises* OSError, also when the answer breaks off or does not come."""
        while self._idle:
            try:
                return await self._ask(self._idle.pop(), request)
            except (OSError, asyncio.IncompleteReadError):
                continue  # a server closes what has been idle; only a fresh connection proves anything
        try:
            return await self._ask(await asyncio.open_connection(self.host, self.port), request)
        except (asyncio.IncompleteReadError, TimeoutError) as exc:
            raise OSError("the answer broke off") from exc

    async def _ask(self, link: tuple[asyncio.StreamReader, asyncio.StreamWriter], request: bytes) -> Reply:
        reader, writer = link
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
        except BaseException:
            writer.close()
            raise
        if headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.append(link)
        return Reply(int(head[0].split()[1]), headers, body)

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()


def post(target: str, body: bytes, *, media: str, accept: str, more: Sequence[tuple[str, str]] = ()) -> bytes:
    """The bytes of a request."""
    head = (f"POST {target} HTTP/1.1", "host: load", f"content-type: {media}", f"accept: {accept}")
    extra = (f"{name}: {value}" for name, value in more)
    return "\r\n".join((*head, *extra, f"content-length: {len(body)}", "", "")).encode() + body


PROBE: Final = b"GET /live HTTP/1.1\r\nhost: load\r\n\r\n"


def arrivals(rate: float, seconds: float, *, seed: int = 0) -> list[float]:
    """The times at which requests leave: a Poisson process of so many a second."""
    draw, now = random.Random(seed), 0.0
    times: list[float] = []
    while True:
        now += draw.expovariate(rate)
        if now >= seconds:
            return times
        times.append(now)


async def alone(target: Target, requests: Sequence[bytes]) -> list[Shot]:
    """Each request with what it is answered when nothing else runs; *raises* OSError for anything but a 200."""
    shots = []
    for request in requests:
        reply = await target.ask(request)
        if reply.status != 200:
            raise OSError(f"a request was answered {reply.status} when it was sent alone: {reply.body[:300]!r}")
        shots.append(Shot(request, reply.body))
    return shots


async def open_load(target: Target, shots: Sequence[Shot], times: Sequence[float]) -> list[Answer]:
    """Sends the shots in turn at these times, and waits for every answer."""
    began = time.perf_counter()

    async def fire(shot: Shot, at: float) -> Answer:
        await asyncio.sleep(began + at - time.perf_counter())
        return await _one(target, shot, began, at)

    return list(
        await asyncio.gather(*(fire(shot, at) for shot, at in zip(itertools.cycle(shots), times, strict=False)))
    )


async def closed_load(target: Target, shots: Sequence[Shot], *, clients: int, seconds: float) -> list[Answer]:
    """So many clients, each sending its next request when it has its answer."""
    began = time.perf_counter()
    turn = itertools.cycle(shots)

    async def client() -> list[Answer]:
        found = []
        while (at := time.perf_counter() - began) < seconds:
            found.append(await _one(target, next(turn), began, at))
        return found

    return [answer for found in await asyncio.gather(*(client() for _ in range(clients))) for answer in found]


async def _one(target: Target, shot: Shot, began: float, at: float) -> Answer:
    try:
        reply = await target.ask(shot.request)
    except OSError:
        reply = Reply(0, {}, b"")
    ended = time.perf_counter() - began
    right = reply.status == 200 and reply.body == shot.expected
    return Answer(reply.status, right, "retry-after" in reply.headers, ended - at, ended)


async def probe(target: Target, until: asyncio.Event) -> list[float]:
    """Latencies of /live, asked ten times a second."""
    found = []
    while not until.is_set():
        started = time.perf_counter()
        try:
            await target.ask(PROBE)
            found.append(time.perf_counter() - started)
        except OSError:
            found.append(PATIENCE_SECONDS)
        await asyncio.sleep(PROBE_SECONDS)
    return found


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of a load. *Units*: requests, requests per second, seconds, milliseconds; None where there was none.

    Right answers have the very bytes of their solo reference. `goodput` counts those that came while the load lasted,
    `answered` the wrong ones too.
    """

    offered: float
    sent: int
    right: int
    wrong: int
    lost: int
    refused: int
    without_retry_after: int
    others: dict[str, int] = field(default_factory=dict)
    goodput: float = 0.0
    answered: float = 0.0
    p50_s: float | None = None
    p99_s: float | None = None
    refused_p99_ms: float | None = None
    live_p99_ms: float | None = None

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def summarise(answers: Sequence[Answer], *, seconds: float, live: Sequence[float] = ()) -> Summary:
    """`seconds` is how long the load lasted."""
    right = [answer for answer in answers if answer.right]
    refused = [answer for answer in answers if answer.status in REFUSED]
    known = (0, 200, *REFUSED)
    return Summary(
        offered=len(answers) / seconds,
        sent=len(answers),
        right=len(right),
        wrong=sum(answer.status == 200 and not answer.right for answer in answers),
        lost=sum(answer.status == 0 for answer in answers),
        refused=len(refused),
        without_retry_after=sum(not answer.retry_after for answer in refused),
        others=dict(Counter(str(answer.status) for answer in answers if answer.status not in known)),
        goodput=sum(answer.ended <= seconds for answer in right) / seconds,
        answered=sum(answer.ended <= seconds for answer in answers if answer.status == 200) / seconds,
        p50_s=_quantile([answer.latency for answer in right], 0.5),
        p99_s=_quantile([answer.latency for answer in right], 0.99),
        refused_p99_ms=_milliseconds(_quantile([answer.latency for answer in refused], 0.99)),
        live_p99_ms=_milliseconds(_quantile(live, 0.99)),
    )


def _quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so many are not above."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
