"""benchmarks/overload.py: its load is open, and it sees whatever goes wrong."""

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import overload
import pytest
from load import Shot, Target, alone, arrivals, closed_load, open_load, post, summarise

RIGHT = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nright"
SHOT = Shot(post("/", b"abc", media="a/b", accept="c/d"), b"right")


@asynccontextmanager
async def answering(answer: Callable[[int], bytes], *, seconds: float = 0.0) -> AsyncIterator[Target]:
    """A server that takes its time for each request, and gives the n-th one what `answer` says; nothing hangs up."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while True:
                await reader.readuntil(b"\r\n\r\nabc")
                count += 1
                data = answer(count)
                await asyncio.sleep(seconds)
                writer.write(data)
                if not data or b"connection: close" in data:
                    return
        except asyncio.IncompleteReadError:
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    target = Target(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield target
    finally:
        target.close()
        server.close()


def test_arrivals() -> None:
    """Arrivals are fixed in advance: as many as the rate says, spread as by chance, the same each time."""
    times = arrivals(100.0, 50.0)
    assert times == arrivals(100.0, 50.0)
    assert 4700 < len(times) < 5300
    assert times == sorted(times)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert sum(gap > 0.01 for gap in gaps) / len(gaps) == pytest.approx(0.37, abs=0.03)


@pytest.mark.alone
async def test_the_load_is_open() -> None:
    """Requests leave in time although none is answered, and latency counts from the intended time."""
    async with answering(lambda _: RIGHT, seconds=0.5) as target:
        started = time.perf_counter()
        found = await open_load(target, [SHOT], [0.01 * number for number in range(30)])
        assert time.perf_counter() - started < 1.5
    assert all(answer.right and 0.4 < answer.latency < 1.2 for answer in found)


async def test_a_late_start_counts() -> None:
    """A request that leaves later than intended is charged for that too."""
    async with answering(lambda _: RIGHT) as target:
        work = asyncio.create_task(open_load(target, [SHOT], [0.05]))
        await asyncio.sleep(0.02)
        time.sleep(0.3)
        [found] = await work
    assert found.latency > 0.2


async def test_what_goes_wrong() -> None:
    """Wrong bytes, lost answers, refusals with and without Retry-After, and other statuses are each counted."""
    answers = [
        RIGHT,
        RIGHT.replace(b"right", b"wrong"),
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\nconnection: close\r\n\r\nshort",
        b"HTTP/1.1 503 No\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 429 No\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
    ]
    found = []
    for answer in answers:
        async with answering(lambda _, answer=answer: answer) as target:  # type: ignore[misc]
            found += await open_load(target, [SHOT], [0.0])
    row = summarise(found, seconds=1.0)
    assert (row.sent, row.right, row.wrong, row.lost, row.refused) == (7, 1, 1, 2, 2)
    assert row.without_retry_after == 1
    assert row.others == {"500": 1}


async def test_a_connection_that_was_closed_while_idle() -> None:
    """A connection that the server has closed meanwhile is replaced, and nothing counts as lost."""
    async with answering(lambda number: RIGHT if number % 2 else b"") as target:
        assert (await open_load(target, [SHOT], [0.0]))[0].right
        assert (await open_load(target, [SHOT], [0.0]))[0].right


async def test_alone() -> None:
    """The references are what each request is answered alone; one that is refused ends the measurement."""
    async with answering(lambda number: RIGHT if number == 1 else RIGHT.replace(b"200", b"400")) as target:
        assert (await alone(target, [SHOT.request]))[0].expected == b"right"
        with pytest.raises(OSError, match="answered 400"):
            await alone(target, [SHOT.request])


async def test_closed_load() -> None:
    """So many clients wait for their answers, so no more requests are sent than that allows."""
    async with answering(lambda _: RIGHT, seconds=0.1) as target:
        found = await closed_load(target, [SHOT], clients=3, seconds=0.55)
    assert 12 <= len(found) <= 18
    assert summarise(found, seconds=0.55).right == len(found)


def test_the_command(start: Any, tmp_path: Path) -> None:
    """Against a real server above its capacity: nothing is wrong or lost, what is refused says when to come back."""
    file = tmp_path / "rows.json"
    with start("copy", max_waiting=4) as server:
        arguments = ["--url", server.url, "--sizes", "8,16", "--rates", "0.5,3", "--seconds", "1", "--json", str(file)]
        command = [sys.executable, overload.__file__, *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(file.read_text())
    assert found["capacity"]["right"] > 0
    for row in [found["capacity"], *found["rows"]]:
        assert row["right"] + row["refused"] == row["sent"]
        assert (row["wrong"], row["lost"], row["without_retry_after"], row["others"]) == (0, 0, 0, {})
    assert [row["rate"] for row in found["rows"]] == [0.5, 3]
