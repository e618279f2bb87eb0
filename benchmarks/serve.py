"""Decodes per second of the demo VAE with many clients: ours, LitServe with batching, and the toolkit's way.

Each server runs in a process of its own, one at a time, on loopback; every round starts each of them afresh, and the
medians over the rounds are shown. With `--rates` each also gets open loads of so many times its own capacity. Every
body is compared with the one that the same request got alone from the same server. Exits 1 when a target is missed.

    python benchmarks/serve.py --sides 64 --json benchmarks/results/serve_64.json
    python benchmarks/serve.py --sides 64 128 256 --json benchmarks/results/serve_mixed.json
"""

import argparse
import asyncio
import json
import statistics
import sys
from pathlib import Path

import numpy as np
from load import Summary, Target, alone, closed_load, post, summarise
from overload import measure
from start import conditions, server

from client import form_request

HERE = Path(__file__).parent
OURS = ("-m", "remote_vae.cli.main", "serve", "--max-client-share", "1", "--port")
COMMANDS = {
    "ours": OURS,
    "ours_two_replicas": (*OURS[:-1], "--replicas", "2", "--port"),
    "ours_bfloat16": (*OURS[:-1], "--replicas", "2", "--dtype", "bfloat16", "--port"),
    "litserve": (str(HERE / "vae_servers.py"), "litserve"),
    "toolkit": (str(HERE / "vae_servers.py"), "toolkit"),
}
LABELS = {
    "ours": "remote-vae",
    "ours_two_replicas": "remote-vae, two replicas",
    "ours_bfloat16": "remote-vae, two replicas, bfloat16",
    "litserve": "LitServe, batching on",
    "toolkit": "diffusers in the server, one at a time",
}
KINDS, CHANNELS, RATIO = 8, 16, 8
LEAST_TIMES = {"litserve": 1.5, "toolkit": 3.0}


def main() -> int:
    arguments = _arguments()
    rounds: dict[str, list[list[Summary]]] = {name: [] for name in COMMANDS}
    for number in range(arguments.rounds):
        for name, found in rounds.items():
            print(f"round {number + 1} of {arguments.rounds}: {LABELS[name]}", file=sys.stderr)
            found.append(_measure(name, arguments))
    rates = {name: statistics.median(row[0].answered for row in found) for name, found in rounds.items()}
    best = max(rates["ours"], rates["ours_two_replicas"])
    targets = {name: best / rates[name] for name in LEAST_TIMES}
    coarser = {name: rates["ours_bfloat16"] / rates[name] for name in LEAST_TIMES}
    print(_table(rounds, arguments.rates))
    print("\n| times the requests/s of | at least | in float32, as they do | in bfloat16 |\n|---|--:|--:|--:|")
    for name, least in LEAST_TIMES.items():
        reached = f"{targets[name]:.2f}{'' if targets[name] >= least else ', missed'}"
        print(f"| {LABELS[name]} | {least:g} | {reached} | {coarser[name]:.2f} |")
    if arguments.json is not None:
        rows = {name: [[row.to_json() for row in found] for found in each] for name, each in rounds.items()}
        document = {
            "conditions": conditions("litserve", "starlette", "uvicorn", "diffusers"),
            "arguments": {name: value for name, value in vars(arguments).items() if name != "json"},
            "requests_s": rates,
            "times": targets,
            "times_in_bfloat16": coarser,
            "rounds": rows,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(targets[name] >= least for name, least in LEAST_TIMES.items()) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64], help="of the pictures, mixed alike, in pixels")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="open loads, times the capacity")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def _measure(name: str, arguments: argparse.Namespace) -> list[Summary]:
    """The capacity, and each open load."""
    ready = "/ready" if name.startswith("ours") else "/health"
    with server(*COMMANDS[name], ready=ready) as port:
        return asyncio.run(_load(port, _requests(name, arguments.sides), arguments))


async def _load(port: int, requests: list[bytes], arguments: argparse.Namespace) -> list[Summary]:
    target = Target(f"http://127.0.0.1:{port}")
    shots = await alone(target, requests)
    await closed_load(target, shots, clients=arguments.clients, seconds=2.0)
    answers = await closed_load(target, shots, clients=arguments.clients, seconds=arguments.seconds)
    found = [summarise(answers, seconds=arguments.seconds)]
    for rate in arguments.rates:
        found.append(await measure(target, shots, rate=rate * found[0].answered, seconds=arguments.seconds))
    target.close()
    return found


def _requests(name: str, sides: list[int]) -> list[bytes]:
    """Seeded noise, in the form that the server takes."""
    draw = np.random.default_rng(0)
    return [_request(name, draw, side // RATIO) for _ in range(KINDS) for side in sides]


def _request(name: str, draw: np.random.Generator, cells: int) -> bytes:
    body = draw.standard_normal((1, CHANNELS, cells, cells)).astype(np.float16).tobytes()
    if name == "litserve":
        return form_request("/predict", body)
    query = f"?shape=1,{CHANNELS},{cells},{cells}&dtype=float16&do_scaling=True"
    path = "/predict" if name == "toolkit" else f"/{query}"
    return post(path, body, media="tensor/binary", accept="image/jpeg")


def _table(rounds: dict[str, list[list[Summary]]], rates: list[float]) -> str:
    lines = [
        "| server | load | sent | answered | differ | lost | refused | p50 s | p99 s | refused p99 ms | live p99 ms |",
        "|---|---|" + "--:|" * 9,
    ]
    for name, found in rounds.items():
        for index, load in enumerate(["capacity", *(f"{rate:g}x" for rate in rates)]):
            rows = [each[index] for each in found]
            lines.append(f"| {LABELS[name]} | {load} | " + " | ".join(_cells(rows)) + " |")
    return "\n".join(lines)


def _cells(rows: list[Summary]) -> list[str]:
    """Medians over the rounds of what is measured, sums of what is counted."""
    names = ("offered", "answered", "wrong", "lost", "refused", "p50_s", "p99_s", "refused_p99_ms", "live_p99_ms")
    cells = []
    for name in names:
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        total = sum(values) if name in ("wrong", "lost", "refused") else statistics.median(values) if values else None
        cells.append("" if total is None else f"{total:.4g}")
    return cells


if __name__ == "__main__":
    raise SystemExit(main())
