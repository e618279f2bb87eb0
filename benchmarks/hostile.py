"""Honest clients beside a thousand mixed hostile requests: what the honest clients still get, and what stays.

The demo VAE at 64x64, without and then beside eight strangers, who send bodies that never come, pictures and JSON that
cost more than they should, requests in one heap, and who mostly leave at once. There are two honest loads. The closed
one, two clients that wait for their answers, takes all cores, so whatever anybody else computes is lost to it, also
what the strangers compute on the same machine. The open one sends half as many requests a second as the closed one got
answered alone, whatever becomes of them. Rounds with and without strangers take turns, so that other work on the
machine meets both. Every honest answer is compared with the one that the same request got alone, and the CPU time of
every side is told. Exits 1 when the closed load's goodput fell by more than a tenth, an answer was wrong, 40 MB stayed,
or a replica was replaced.

    python benchmarks/hostile.py --json benchmarks/results/hostile.json
"""

import argparse
import asyncio
import io
import itertools
import json
import multiprocessing
import statistics
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from load import Answer, Target, alone, arrivals, closed_load, open_load, post, summarise
from PIL import Image
from start import conditions, server

COMMAND = ("-m", "remote_vae.cli.main", "serve", "--max-client-share", "1", "--port")
CLIENTS, STRANGERS = 2, 8
LEAST_GOODPUT, MOST_STAYING = 0.9, 40e6
REST_SECONDS = 12.0  # after which memory has been given back
LEAVES_SECONDS = 0.2
SIZE = 2 << 20


def main() -> int:
    arguments = _arguments()
    with server(*COMMAND) as port:
        [process] = psutil.Process().children()
        found = asyncio.run(_measure(port, process, arguments))
    closed, opened = found["closed_load"], found["open_load_at_half_the_rate"]
    good = closed["ratio"] >= LEAST_GOODPUT and found["stayed_bytes"] <= MOST_STAYING
    good = good and not closed["not_right"] and not opened["not_right"] and found["replicas_replaced"] == 0
    print(json.dumps(found, indent=1))
    if arguments.json is not None:
        document = {"conditions": conditions("starlette", "uvicorn"), **found}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if good else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0, help="in which the hostile requests are spread")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each load")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


async def _measure(port: int, process: psutil.Process, arguments: argparse.Namespace) -> dict[str, Any]:
    target = Target(f"http://127.0.0.1:{port}")
    latent = np.random.default_rng(0).standard_normal((1, 16, 8, 8)).astype(np.float16).tobytes()
    query = "/demo/decode?shape=1,16,8,8&dtype=float16&output_type=pt"
    shots = await alone(target, [post(query, latent, media="tensor/binary", accept="tensor/binary")])
    seconds = arguments.seconds / arguments.rounds
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as strangers:

        async def attacked(count: int) -> float:
            return await asyncio.get_running_loop().run_in_executor(strangers, attack, port, count, seconds)

        async def in_turns(load: Callable[[], Awaitable[list[Answer]]]) -> dict[str, Any]:
            sides = Side(), Side()
            for number in range(2 * arguments.rounds):
                count = arguments.requests // arguments.rounds * (number % 2)
                await sides[number % 2].take(load, partial(attacked, count), process, seconds)
            return _compared(*sides)

        await attacked(100)  # what is needed once is there afterwards
        await asyncio.sleep(REST_SECONDS)
        before, replicas = process.memory_info().rss, _replicas(process)
        closed = await in_turns(lambda: closed_load(target, shots, clients=CLIENTS, seconds=seconds))
        times = arrivals(closed["goodput_quiet"] / 2, seconds)
        opened = await in_turns(lambda: open_load(target, shots, times))
        await asyncio.sleep(REST_SECONDS)
    target.close()
    return {
        "hostile_requests": arguments.requests,
        "closed_load": closed,
        "open_load_at_half_the_rate": opened,
        "stayed_bytes": process.memory_info().rss - before,
        "replicas_replaced": len(replicas - _replicas(process)),
    }


@dataclass
class Side:
    """What all rounds of a load have told, either without strangers or beside them. *Units*: CPU seconds."""

    answers: list[Answer] = field(default_factory=list)
    goods: list[float] = field(default_factory=list)
    cpu: Counter[str] = field(default_factory=Counter)

    async def take(
        self,
        load: Callable[[], Awaitable[list[Answer]]],
        attacked: Callable[[], Awaitable[float]],
        process: psutil.Process,
        seconds: float,
    ) -> None:
        """Runs one round."""
        before, attack = _cpu_seconds(process), asyncio.ensure_future(attacked())
        answers = await load()
        self.cpu["strangers"] += await attack
        self.cpu.update(_cpu_seconds(process))
        self.cpu.subtract(before)
        self.answers += answers
        self.goods.append(summarise(answers, seconds=seconds).goodput)


def _compared(quiet: Side, beside: Side) -> dict[str, Any]:
    rates = statistics.fmean(quiet.goods), statistics.fmean(beside.goods)
    summaries = (summarise(side.answers, seconds=1.0) for side in (quiet, beside))
    return {
        "goodput_quiet": rates[0],
        "goodput_beside": rates[1],
        "ratio": rates[1] / rates[0],
        "rounds": (quiet.goods, beside.goods),
        "p50_p99_s": [(found.p50_s, found.p99_s) for found in summaries],
        "not_right": sum(not answer.right for side in (quiet, beside) for answer in side.answers),
        "cpu_s_quiet": quiet.cpu,
        "cpu_s_beside": beside.cpu,
    }


def _cpu_seconds(process: psutil.Process) -> Counter[str]:
    """Of the honest clients, which are this process, and of the server's processes: its own, replicas, and readers."""
    found = Counter(clients=sum(psutil.Process().cpu_times()[:2]), server=sum(process.cpu_times()[:2]))
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            reads, times = "server.reading" in " ".join(child.cmdline()), child.cpu_times()
            found["reading" if reads else "replicas"] += sum(times[: 4 if reads else 2])  # also of forks that ended
    return found


def _replicas(process: psutil.Process) -> set[int]:
    found = {}
    for child in process.children():
        with suppress(psutil.NoSuchProcess):
            found[child.pid] = " ".join(child.cmdline())
    return {pid for pid, command in found.items() if "spawn_main" in command}


def attack(port: int, count: int, seconds: float) -> float:
    """Sends so many hostile requests evenly over the time, from another process, and returns its CPU time."""
    hostile_requests()
    began = time.process_time()
    asyncio.run(_attack(port, count, seconds))
    return time.process_time() - began


async def _attack(port: int, count: int, seconds: float) -> None:
    room, turn = asyncio.Semaphore(STRANGERS), itertools.cycle(hostile_requests())

    async def one(number: int, request: bytes) -> None:
        await asyncio.sleep(number * seconds / count)
        async with room:
            await _stranger(port, request)

    await asyncio.gather(*(one(number, next(turn)) for number in range(count)))


async def _stranger(port: int, request: bytes) -> None:
    """Sends, waits a moment, reads what there is, and leaves."""
    with suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVES_SECONDS):
                    await reader.read(65536)
        finally:
            writer.transport.abort()


@cache
def hostile_requests() -> list[bytes]:
    """One of each kind."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (2048, 2048, 3), np.uint8))
    jpeg, webp = _saved(Image.new("RGB", (64, 64)), "JPEG"), _saved(noise, "WEBP", lossless=True, method=0)
    png = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">2I5B", 64, 64, 8, 2, 0, 0, 0))
    pictures = [
        jpeg[:2] + b"\xff\xfe\0\2" * (SIZE // 4) + jpeg[2:],
        png + _chunk(b"prVt") * (SIZE // 12),
        png + _chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"41 " * SIZE)) * 16,
        webp,
        _saved(noise, "JPEG", progressive=True),
    ]
    texts = [b'{"inputs": "' + b"A" * SIZE + b'"}', b'{"inputs": [' + b"{}," * (SIZE // 3), b"[" * SIZE]
    get = b"GET /live HTTP/1.1\r\nhost: a\r\n\r\n"
    return [
        *(post("/demo/encode", body, media="application/octet-stream", accept="*/*") for body in pictures),
        *(post("/demo/decode", body, media="application/json", accept="*/*") for body in texts),
        post("/demo/encode", bytes(60 << 20), media="image/png", accept="*/*")[:200],
        get * 5000,
        get[:-2],
        get[:-2] + b"x-a: b\r\n" * 5000,
        b"\0" * 1000,
    ]


def _chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
