"""Steady load while processes are killed: every answer must be right, and none may be lost by a client that retries.

`remote-vae serve --ray` with two replicas of the demo VAE; a DecodeQueue has four latents on their way at any time.
Every second a Ray replica or a process that holds a model is killed, and in the middle Ray's proxy. Exits 1 when an
answer was wrong or lost, or the service did not recover in time.
"""

import argparse
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from start import conditions, wait_until_ready

from remote_vae import Client, DecodeQueue

SPARE_SECONDS = 5.0  # to recover in after the last kill, on top of what the start took
TIMEOUT = 120.0
IN_FLIGHT = 4
# Many: one over which two processes happened to be killed is remembered as poison, and refused when it comes again.
LATENTS = list(np.random.default_rng(3).standard_normal((64, 1, 16, 8, 8), np.float32))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--every", type=float, default=1.0, help="seconds from one kill to the next")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    command = [
        sys.executable,
        "-m",
        "remote_vae.cli.main",
        "serve",
        "--ray",
        "--ray-replicas",
        "2",
        "--port",
        str(port),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    asked = time.monotonic()
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        wait_until_ready(port, "/ready", server)
        load = Load(f"http://127.0.0.1:{port}")
        start = time.monotonic() - asked
        found: dict[str, object] = {"start_seconds": start, **_chaos(arguments, server.pid, load, start)}
    finally:
        server.terminate()
        server.wait(60)
    print(json.dumps(found, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps({"conditions": conditions("ray", "starlette", "uvicorn"), **found}, indent=2) + "\n"
        )
    return 0 if found["wrong"] == found["lost"] == 0 and found["recovered"] else 1


class Load:
    """A queue that decodes one latent after another until it is told to stop, and what became of each."""

    def __init__(self, url: str) -> None:
        with Client(url) as client:
            self._expected = [client.decode(latent, output_type="pt") for latent in LATENTS]
        self._url, self._stop = url, threading.Event()
        self.answers: list[float] = []  # when each came
        self.wrong = 0
        self.lost: list[str] = []
        self._thread = threading.Thread(target=self._decode)
        self._thread.start()

    def _decode(self) -> None:
        latents = itertools.takewhile(lambda _: not self._stop.is_set(), itertools.cycle(LATENTS))
        with DecodeQueue(self._url, in_flight=IN_FLIGHT, timeout=TIMEOUT, output_type="pt") as queue:
            for item in queue.map(latents):
                if item.error is not None:
                    self.lost.append(repr(item.error))
                    continue
                self.answers.append(time.monotonic())
                self.wrong += not np.array_equal(item.value, self._expected[item.index % len(LATENTS)])

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def _chaos(arguments: argparse.Namespace, pid: int, load: Load, start: float) -> dict[str, object]:
    chosen = random.Random(arguments.seed)
    killed: dict[str, int] = {"replica": 0, "model": 0, "proxy": 0}
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < arguments.seconds:
        kind = chosen.choice(["replica", "model"])
        if passed > arguments.seconds / 2 and not killed["proxy"]:
            kind = "proxy"
        victims = _processes(pid)[kind]
        if victims:
            with suppress(psutil.NoSuchProcess):
                chosen.choice(victims).kill()
                killed[kind] += 1
        time.sleep(arguments.every)
    last_kill = time.monotonic()
    answer, both = _until_both_replicas(pid, load, last_kill)
    time.sleep(3)
    load.stop()
    return {
        "seconds": arguments.seconds,
        "killed": killed,
        "answered": len(load.answers),
        "wrong": load.wrong,
        "lost": len(load.lost),
        "what_was_lost": load.lost[:5],
        "longest_without_an_answer_seconds": max(b - a for a, b in itertools.pairwise([begun, *load.answers])),
        "answer_after_last_kill_seconds": answer,
        "both_replicas_after_seconds": both,
        "recovered": both <= start + SPARE_SECONDS,
    }


def _until_both_replicas(pid: int, load: Load, since: float) -> tuple[float, float]:
    """Seconds to the first answer and to both replicas with their models; TIMEOUT for what did not come."""
    answer = TIMEOUT
    while time.monotonic() - since < TIMEOUT:
        if answer == TIMEOUT and load.answers and load.answers[-1] > since:
            answer = load.answers[-1] - since
        found = _processes(pid)
        if answer < TIMEOUT and len(found["replica"]) >= 2 and len(found["model"]) >= 2:
            return answer, time.monotonic() - since
        time.sleep(0.05)
    return answer, TIMEOUT


def _processes(pid: int) -> dict[str, list[psutil.Process]]:
    found: dict[str, list[psutil.Process]] = {"replica": [], "model": [], "proxy": []}
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            line = " ".join(child.cmdline())
            if line.startswith("ray::ServeReplica") and ".initialize" not in line:
                found["replica"].append(child)
            elif "spawn_main" in line:
                found["model"].append(child)
            elif line.startswith("ray::ProxyActor"):
                found["proxy"].append(child)
    return found


if __name__ == "__main__":
    sys.exit(main())
