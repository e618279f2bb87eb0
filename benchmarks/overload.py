"""How many right answers a running server gives when it is asked for more than it can do.

python benchmarks/overload.py --url http://127.0.0.1:8000 --rates 0.5,2,10
"""

import asyncio
import json
import math
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from command import run
from load import (
    Shot,
    Summary,
    Target,
    alone,
    arrivals,
    closed_load,
    open_load,
    post,
    probe,
    summarise,
)
from rich.table import Table

from remote_vae.cli.files import check_output, write_file
from remote_vae.cli.terminal import console
from remote_vae.client import Client
from remote_vae.errors import ConfigurationError, ConnectionFailed

KINDS_OF_EACH_SIZE = 4
Card = dict[str, Any]


def overload(
    url: Annotated[str, typer.Option(help="Of a running server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="One of the server's.", show_default="its first")] = None,
    sizes: Annotated[str, typer.Option(metavar="PIXELS", help="Sides of the pictures, mixed alike.")] = "64,128,256",
    rates: Annotated[str, typer.Option(help="Times the measured capacity.")] = "0.5,0.8,1,2,5,10",
    seconds: Annotated[float, typer.Option(help="Of each load.")] = 60.0,
    clients: Annotated[int, typer.Option(min=1, help="That find the capacity.")] = 16,
    timeout_seconds: Annotated[
        float | None, typer.Option(help="What each request says that it will wait.", show_default="the server's")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Measure how many right answers a server gives when it is asked for more than it can do.

    First its capacity, by clients that wait for answers; then an open load at each rate. Every body is compared with
    the one that the same request got alone.
    """
    if json_file is not None:
        check_output(json_file, (".json",))
    sides, factors = (_numbers(text, name) for text, name in ((sizes, "--sizes"), (rates, "--rates")))
    with Client(url) as client:
        card = _card(client.models(), model)
    requests = [
        latent_request(card, int(side), seed, timeout_seconds) for seed in range(KINDS_OF_EACH_SIZE) for side in sides
    ]
    try:
        capacity, rows = asyncio.run(_run(url, requests, factors, seconds, clients))
    except OSError as exc:
        raise ConnectionFailed(f"{url}: {exc}") from exc
    console.print(_table(capacity, factors, rows))
    if json_file is not None:
        found = {"url": url, "model": card["name"], "sizes": sides, "seconds": seconds, "clients": clients}
        rounds = [{"rate": rate, **row.to_json()} for rate, row in zip(factors, rows, strict=True)]
        document = {**found, "capacity": capacity.to_json(), "rows": rounds}
        write_file(json_file, (json.dumps(document, indent=1) + "\n").encode())


async def _run(
    url: str, requests: Sequence[bytes], factors: Sequence[float], seconds: float, clients: int
) -> tuple[Summary, list[Summary]]:
    target = Target(url)
    try:
        with console.status("each request alone"):
            shots = await alone(target, requests)
        with console.status(f"capacity, with {clients} clients"):
            answers = await closed_load(target, shots, clients=clients, seconds=seconds)
        capacity = summarise(answers, seconds=seconds)
        if not capacity.right:
            raise ConfigurationError(f"no answer was right with {clients} clients: {capacity}")
        rows = []
        for factor in factors:
            with console.status(f"{factor:g} times {capacity.goodput:.1f} requests/s"):
                rows.append(await measure(target, shots, rate=factor * capacity.goodput, seconds=seconds))
    finally:
        target.close()
    return capacity, rows


async def measure(target: Target, shots: Sequence[Shot], *, rate: float, seconds: float) -> Summary:
    """An open load, with /live asked beside it."""
    over = asyncio.Event()
    prober = Target(f"http://{target.host}:{target.port}")
    probing = asyncio.create_task(probe(prober, over))
    try:
        answers = await open_load(target, shots, arrivals(rate, seconds))
    finally:
        over.set()
    live = await probing
    prober.close()
    return summarise(answers, seconds=seconds, live=live)


def latent_request(card: Card, side: int, seed: int, timeout_seconds: float | None = None) -> bytes:
    """A decode of seeded noise to a JPEG of so many pixels a side."""
    ratio = card["spatial_compression_ratio"]
    frames = (1,) if card["kind"] == "video" else ()
    shape = (1, card["latent_channels"], *frames, max(1, side // ratio), max(1, side // ratio))
    count, draw = math.prod(shape), random.Random(seed)
    body = struct.pack(f"<{count}e", *(draw.gauss(0.0, 1.0) for _ in range(count)))
    query = f"shape={','.join(map(str, shape))}&dtype=float16&do_scaling=True"
    wait = () if timeout_seconds is None else (("x-request-timeout-seconds", f"{timeout_seconds:g}"),)
    return post(f"/{card['name']}/decode?{query}", body, media="tensor/binary", accept="image/jpeg", more=wait)


def _card(cards: Sequence[Card], name: str | None) -> Card:
    found = [card for card in cards if name in (None, card["name"], *card["aliases"])]
    if not found:
        raise ConfigurationError(
            f"the server has no model {name!r}; it has {', '.join(card['name'] for card in cards)}"
        )
    return found[0]


def _numbers(text: str, name: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < value < math.inf for value in found):
        raise ConfigurationError(f"{name} {text!r} is not a list of numbers above 0")
    return found


def _table(capacity: Summary, factors: Sequence[float], rows: Sequence[Summary]) -> Table:
    table = Table(
        "load",
        "sent/s",
        "right/s",
        "wrong",
        "lost",
        "refused",
        "others",
        "p50 s",
        "p99 s",
        "refused p99 ms",
        "/live p99 ms",
    )
    names = ["capacity", *(f"{factor:g}x" for factor in factors)]
    for name, row in zip(names, [capacity, *rows], strict=True):
        cells: list[float | None] = [
            row.offered,
            row.goodput,
            row.wrong,
            row.lost,
            row.refused,
            sum(row.others.values()),
        ]
        cells += [row.p50_s, row.p99_s, row.refused_p99_ms, row.live_p99_ms]
        table.add_row(name, *("" if cell is None else f"{cell:.4g}" for cell in cells))
    return table


if __name__ == "__main__":
    run(overload)
