"""What Ray Serve costs and gives on one machine: overhead of a request, two replicas against one, start, memory.

Overhead: the VAE that does no work, 64 KiB in and 768 KiB out, one client. Scale: the demo VAE at 512x512 with one
thread a replica, four clients; what two replicas are worth without Ray says what the machine allows. All in one run;
every round starts each server afresh. Exits 1 when a target is missed.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
from overhead import OURS_TARGETS, SMALL_BODY
from replies import SMALL_REPLY
from start import conditions, wait_until_ready

from client import Caller, latencies, raw_request

HERE = Path(__file__).parent
LATENT, PIXELS = (1, 16, 64, 64), (1, 3, 512, 512)
MOST_OVERHEAD_MS, LEAST_SPEED_UP, MOST_START_SECONDS = 3.0, 1.8, 20.0
CLIENTS = 4
SETTLE_SECONDS = 3.0  # for Ray's proxy to hear of every replica
IDLE = ("ours", "ray_one")
DEMO = {
    "alone": (),
    "alone_two": ("--replicas", "2"),
    "ray_one": ("--ray", "--ray-cpus", "1"),
    "ray_two": ("--ray", "--ray-cpus", "1", "--ray-replicas", "2"),
}

Row = dict[str, object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=400, help="of one client, with the VAE that does no work")
    parser.add_argument("--decodes", type=int, default=10, help="of each client, with the demo VAE")
    parser.add_argument("--overhead-only", action="store_true", help="leave the demo VAE out")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    overhead = {name: [_overhead(name, arguments.calls) for _ in range(arguments.rounds)] for name in IDLE}
    if arguments.overhead_only:
        medians = {
            name: statistics.median(float(str(row["p50_ms"])) for row in rows) for name, rows in overhead.items()
        }
        found = {"conditions": conditions("ray", "starlette", "uvicorn"), "overhead": overhead}
        _write(arguments.json, found)
        print(f"{medians}; overhead at p50 {medians['ray_one'] - medians['ours']:.2f} ms")
        return 0 if medians["ray_one"] - medians["ours"] <= MOST_OVERHEAD_MS else 1
    scale = {name: [_scale(name, arguments.decodes) for _ in range(arguments.rounds)] for name in DEMO}
    figures = _figures(overhead, scale)
    targets = [
        ("overhead at p50, ms", figures["overhead_ms"], "at most", MOST_OVERHEAD_MS),
        ("two replicas, times one", figures["speed_up"], "at least", LEAST_SPEED_UP),
        ("start of one replica, s", figures["start_seconds"], "at most", MOST_START_SECONDS),
    ]
    met = [value <= bound if word == "at most" else value >= bound for _, value, word, bound in targets]
    for name, value in figures.items():
        print(f"{name}: {value:.2f}")
    for (name, value, word, bound), reached in zip(targets, met, strict=True):
        print(f"{name}: {value:.2f}, {word} {bound:g}: {'met' if reached else 'missed'}")
    how = conditions("ray", "starlette", "uvicorn")
    _write(arguments.json, {"conditions": how, "figures": figures, "overhead": overhead, "scale": scale})
    return 0 if all(met) else 1


def _write(path: Path | None, report: dict[str, object]) -> None:
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n")


def _figures(overhead: dict[str, list[Row]], scale: dict[str, list[Row]]) -> dict[str, float]:
    def median(rows: list[Row], figure: str) -> float:
        return statistics.median(float(str(row[figure])) for row in rows)

    return {
        "alone_p50_ms": median(overhead["ours"], "p50_ms"),
        "ray_p50_ms": median(overhead["ray_one"], "p50_ms"),
        "overhead_ms": median(overhead["ray_one"], "p50_ms") - median(overhead["ours"], "p50_ms"),
        "alone_per_second": median(scale["alone"], "per_second"),
        "alone_speed_up": median(scale["alone_two"], "per_second") / median(scale["alone"], "per_second"),
        "one_per_second": median(scale["ray_one"], "per_second"),
        "two_per_second": median(scale["ray_two"], "per_second"),
        "speed_up": median(scale["ray_two"], "per_second") / median(scale["ray_one"], "per_second"),
        "start_seconds": median(scale["ray_one"], "start_seconds"),
        "start_alone_seconds": median(scale["alone"], "start_seconds"),
        "memory_of_ray_mb": median(scale["ray_one"], "memory_mb") - median(scale["alone"], "memory_mb"),
    }


def _overhead(name: str, calls: int) -> Row:
    port = _free_port()
    with _running([sys.executable, str(HERE / "servers.py"), name, str(port)], port):
        request = raw_request(OURS_TARGETS[0], SMALL_BODY)
        found = latencies(port, request, len(SMALL_REPLY), warm=50, calls=calls)
    return {"p50_ms": statistics.median(found) * 1000, "p95_ms": statistics.quantiles(found, n=20)[-1] * 1000}


def _scale(name: str, decodes: int) -> Row:
    """Decodes per second of four clients, their latencies, and how long one takes when every replica has just one."""
    port = _free_port()
    command = [sys.executable, "-m", "remote_vae.cli.main", "serve", "--port", str(port), *DEMO[name]]
    size = 4 * LATENT[1] * LATENT[2] * LATENT[3]
    shape = ",".join(map(str, LATENT))
    request = raw_request(f"/demo/decode?shape={shape}&dtype=float32&output_type=pt", bytes(size))
    reply = 4 * PIXELS[1] * PIXELS[2] * PIXELS[3]
    asked = time.perf_counter()
    with _running(command, port) as process:
        started = time.perf_counter() - asked - SETTLE_SECONDS
        callers = [Caller(port, request, reply) for _ in range(CLIENTS)]
        for caller in callers:
            caller.call()
        begun = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            found = list(pool.map(lambda caller: [caller.call() for _ in range(decodes)], callers))
        seconds = time.perf_counter() - begun
        for caller in callers:
            caller.close()
        memory = sum(_memory(child) for child in [process, *process.children(recursive=True)])
        service = _at_once(port, request, reply, clients=2 if name.endswith("two") else 1, decodes=decodes)
    return {
        "start_seconds": started,
        "per_second": CLIENTS * decodes / seconds,
        "latencies_ms": [1000 * one for many in found for one in many],
        "service_ms": [1000 * one for one in service],
        "memory_mb": memory / 1e6,
    }


def _at_once(port: int, request: bytes, reply: int, *, clients: int, decodes: int) -> list[float]:
    """Seconds of each decode when so many clients ask at the same time."""
    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(latencies, port, request, reply, warm=1, calls=decodes) for _ in range(clients)]
        return [one for many in asked for one in many.result()]


def _memory(process: psutil.Process) -> int:
    """What a process has for itself, and its share of what it has with others."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0


@contextmanager
def _running(command: list[str], port: int) -> Iterator[psutil.Process]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        wait_until_ready(port, "/ready", process)
        time.sleep(SETTLE_SECONDS)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
