"""Honest clients beside a thousand mixed hostile requests: what the honest clients still get, and what stays.

The demo VAE at 64x64 for two clients that wait for their answers, without and then beside eight strangers, who send
bodies that never come, pictures and JSON that cost more than they should, requests in one heap, and who mostly leave at
once. Every honest answer is compared with the one that the same request got alone. Exits 1 when the goodput fell by
more than a tenth, an answer was wrong, 40 MB stayed, or a replica was replaced.

    python benchmarks/hostile.py --json benchmarks/results/hostile.json
"""

import argparse
import asyncio
import io
import itertools
import json
import struct
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from load import Answer, Target, alone, closed_load, post, summarise
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
    good = found["ratio"] >= LEAST_GOODPUT and found["stayed_bytes"] <= MOST_STAYING
    good = good and not found["not_right"] and found["replicas_replaced"] == 0
    print(json.dumps(found, indent=1))
    if arguments.json is not None:
        document = {"conditions": conditions("starlette", "uvicorn"), **found}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if good else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0, help="in which the hostile requests are spread")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


async def _measure(port: int, process: psutil.Process, arguments: argparse.Namespace) -> dict[str, float]:
    target = Target(f"http://127.0.0.1:{port}")
    latent = np.random.default_rng(0).standard_normal((1, 16, 8, 8)).astype(np.float16).tobytes()
    query = "/demo/decode?shape=1,16,8,8&dtype=float16&output_type=pt"
    shots = await alone(target, [post(query, latent, media="tensor/binary", accept="tensor/binary")])
    turn = itertools.cycle(hostile_requests())
    for _ in range(2):  # what is needed once is there before anything is counted
        await asyncio.gather(*(_stranger(port, next(turn)) for _ in hostile_requests()))
    quiet = await closed_load(target, shots, clients=CLIENTS, seconds=arguments.seconds)
    await asyncio.sleep(REST_SECONDS)
    before, replicas = process.memory_info().rss, _replicas(process)
    attack = asyncio.create_task(_attack(port, turn, arguments))
    beside = await closed_load(target, shots, clients=CLIENTS, seconds=arguments.seconds)
    took = await attack
    await asyncio.sleep(REST_SECONDS)
    target.close()
    goods = [summarise(answers, seconds=arguments.seconds).goodput for answers in (quiet, beside)]
    return {
        "hostile_requests": arguments.requests,
        "hostile_seconds": took,
        "goodput_quiet": goods[0],
        "goodput_beside": goods[1],
        "ratio": goods[1] / goods[0],
        "not_right": _not_right(quiet) + _not_right(beside),
        "stayed_bytes": process.memory_info().rss - before,
        "replicas_replaced": len(replicas - _replicas(process)),
    }


def _not_right(answers: list[Answer]) -> int:
    return sum(not answer.right for answer in answers)


def _replicas(process: psutil.Process) -> set[int]:
    return {child.pid for child in process.children() if "spawn_main" in " ".join(child.cmdline())}


async def _attack(port: int, turn: "itertools.cycle[bytes]", arguments: argparse.Namespace) -> float:
    """Sends the hostile requests evenly over the time, and returns how long that took."""
    began, room = time.perf_counter(), asyncio.Semaphore(STRANGERS)

    async def one(number: int) -> None:
        await asyncio.sleep(number * arguments.seconds / arguments.requests)
        async with room:
            await _stranger(port, next(turn))

    await asyncio.gather(*map(one, range(arguments.requests)))
    return time.perf_counter() - began


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
