"""`remote-vae encode` of a folder: beside the server's own peak, and with the server killed twice.

The peak is what clients that cost next to nothing get, by turns with the command: each sends one picture's request,
made beforehand, again and again. The server has a core of its own, and so have its clients. The command's time is
without that of a run that finds everything done. Exits 1 if a latent is missing, wrong or there twice, or if the
command gets less than 90 % of the peak.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from safetensors.numpy import load_file
from start import conditions, wait_until_ready

from client import Caller
from remote_vae import Client

LEAST_SHARE: Final = 0.9
SIZES: Final = ((512, 512), (640, 384), (384, 640), (448, 576), (300, 200), (200, 333), (256, 256))
PORT: Final = 8765


def main() -> int:
    arguments = _arguments()
    found: dict[str, Any] = {"conditions": conditions()}
    with tempfile.TemporaryDirectory() as folder:
        kills = _killed(Path(folder), arguments.pictures)
        rates = _rates(Path(folder), arguments)
    found |= {"killed": kills, "rate": rates}
    print(json.dumps(found, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if kills["right"] == kills["pictures"] == kills["lines"] and rates["share"] >= LEAST_SHARE else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200, help="of mixed sizes, while the server is killed")
    parser.add_argument("--equal", type=int, default=100, help="pictures of 512 x 512, for the rate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-flight", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


@contextmanager
def _served() -> Iterator["subprocess.Popen[bytes]"]:
    """The demo model on core 1, always at the same port, as a server is that somebody restarts."""
    command = [sys.executable, "-m", "remote_vae.cli.main", "serve", "--port", str(PORT)]
    process = subprocess.Popen(["taskset", "-c", "1", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(PORT, "/ready", process)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _drawn(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """Smooth pictures with some noise, as JPEG."""
    folder.mkdir()
    for n, (width, height) in enumerate(sizes):
        random = np.random.default_rng(n)
        coarse = Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((width, height))
        noise = random.integers(-8, 8, (height, width, 3))
        pixels = np.clip(np.asarray(coarse, np.int16) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"p{n:04d}.jpg", quality=90)
    return folder


def _command(pictures: Path, out: Path, in_flight: int) -> "subprocess.Popen[bytes]":
    words = ["encode", str(pictures), "-o", str(out), "--url", f"http://127.0.0.1:{PORT}"]
    words += ["--in-flight", str(in_flight), "--posterior", "sample"]
    command = [sys.executable, "-m", "remote_vae.cli.main", *words]
    return subprocess.Popen(["taskset", "-c", "0", *command], stderr=subprocess.DEVNULL)


def _killed(folder: Path, count: int) -> dict[str, Any]:
    """Kills the server and its processes after a third and after two thirds of the pictures; checks every latent."""
    pictures, out = _drawn(folder / "mixed", [SIZES[n % len(SIZES)] for n in range(count)]), folder / "killed"
    manifest = out / "latents.jsonl"
    command, kills = None, 0
    for stop in (count // 3, 2 * count // 3, None):
        with _served() as server:
            command = command or _command(pictures, out, 4)
            if stop is None:
                code = command.wait(600)
                return {"kills": kills, "exit": code, **_checked(pictures, out, manifest)}
            while not manifest.exists() or manifest.read_bytes().count(b"\n") <= stop:
                time.sleep(0.01)
            server.send_signal(signal.SIGKILL)
            server.wait()
            kills += 1
    raise AssertionError("the last round returns")


def _checked(pictures: Path, out: Path, manifest: Path) -> dict[str, int]:
    """How many latents are what the server gives for the picture and its seed alone."""
    records = [json.loads(line) for line in manifest.read_text().splitlines()[1:]]
    right = 0
    with Client(f"http://127.0.0.1:{PORT}") as client:
        for record in records:
            data = (pictures / record["file"]).read_bytes()
            expected = client.encode(data, do_scaling=True, posterior="sample", seed=record["seed"])
            right += bool(np.array_equal(load_file(out / record["latent"])["latents"], expected))
    files = len(list(out.rglob("*.safetensors")))
    return {"pictures": files, "lines": len({record["file"] for record in records}), "right": right}


def _rates(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Pictures a second of 512 pixels a side: the server's peak, and the command's, by turns."""
    pictures = _drawn(folder / "equal", [(512, 512)] * arguments.equal)
    peaks, rates = [], []
    os.sched_setaffinity(0, {0})
    with _served():
        for n in range(arguments.rounds):
            peaks.append(_peak(pictures, arguments))
            out = folder / f"out{n}"
            whole, empty = (_seconds(_command(pictures, out, arguments.in_flight)) for _ in range(2))
            rates.append(arguments.equal / (whole - empty))
    shares = [rate / peak for rate, peak in zip(rates, peaks, strict=True)]
    return {"peak": peaks, "command": rates, "start_seconds": empty, "share": statistics.median(shares)}


def _peak(pictures: Path, arguments: argparse.Namespace) -> float:
    """Requests a second of as many connections as the command has requests at the server."""
    first = sorted(pictures.iterdir())[0].read_bytes()
    with Client(f"http://127.0.0.1:{PORT}") as client:
        reply = client.encode(first, do_scaling=True, posterior="sample", seed=0)
    head = (
        "POST /encode?posterior=sample&seed=0&do_scaling=True HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: tensor/binary\r\n"
        f"content-type: image/jpeg\r\ncontent-length: {len(first)}\r\n\r\n"
    )
    callers = [Caller(PORT, head.encode() + first, reply.nbytes) for _ in range(arguments.in_flight)]
    each = arguments.equal // len(callers)
    started = time.perf_counter()
    with ThreadPoolExecutor(len(callers)) as pool:
        list(pool.map(lambda caller: [caller.call() for _ in range(each)], callers))
    seconds = time.perf_counter() - started
    for caller in callers:
        caller.close()
    return each * len(callers) / seconds


def _seconds(process: "subprocess.Popen[bytes]") -> float:
    started = time.perf_counter()
    if process.wait(600):
        raise RuntimeError(f"the command ended with {process.returncode}")
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
