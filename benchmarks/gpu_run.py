"""One command on a machine with a GPU: its tests, then what a user there would want to know, in under nine minutes.

    make gpu                                 # or: python benchmarks/gpu_run.py
    PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels make gpu   # without a network, from a folder of wheels
    PYTHONPATH=src:wheels-unpacked python benchmarks/gpu_run.py   # with the PyTorch (2.8 or newer) that is there
    python benchmarks/gpu_run.py --rehearse      # everything once, tiny, on a CPU, in under a minute

It runs `tests/gpu` and the tests of Triton's kernels, and measures decoding and encoding of pictures from 512 to 4096
pixels and decoding of clips: ours beside diffusers' eager, channels-last, tiled and compiled, each with its time,
memory and distance from eager; then a server with 1, 4 and 16 clients. Weights are seeded, so nothing is downloaded.
Rows are written as they come; what no time was left for, or failed, is a row that says so. `results/gpu-CARD.json` and
its charts are the result.
"""

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from command import run
from decode_cases import Row
from decode_measure import about
from decode_report import announce, text_of, write_plot
from gpu_plan import FULL, REHEARSAL, Job, Service
from load import Target, alone, closed_load, post, summarise
from start import conditions, server

from remote_vae.cli.terminal import console, show_table
from remote_vae.models.loader import resolve_device

HERE = Path(__file__).parent
LONGEST = 520  # seconds in all; what comes later is left out
RATIO = 8


def main(
    rehearse: Annotated[bool, typer.Option("--rehearse", help="Everything once, tiny, on this machine's CPU.")] = False,
    folder: Annotated[Path, typer.Option(help="Write the results here.")] = HERE / "results",
    seconds: Annotated[float, typer.Option(help="The most that all of it may take.")] = LONGEST,
) -> None:
    """Run the tests of GPUs and the measurements, and write gpu-CARD.json and gpu-CARD.png."""
    plan, deadline = REHEARSAL if rehearse else FULL, time.monotonic() + seconds
    device = resolve_device("cpu" if rehearse else "cuda")
    card = about(device)
    name = "rehearsal" if rehearse else re.sub(r"[^a-z0-9]+", "-", str(card["device_name"]).lower()).strip("-")
    report: dict[str, Any] = {"conditions": {**conditions("diffusers"), **card, "cuda": torch.version.cuda or ""}}
    file = folder / f"gpu-{name}.json"
    report["tests"] = tests(plan.tests) if plan.tests else {"result": "left out of a rehearsal"}
    report["rows"], report["service"] = [], []
    _write(file, report)
    rows: list[Row] = []
    for service in plan.services:
        report["service"] += served(service, device)
        _write(file, report)
    for job in plan.jobs:
        left = deadline - time.monotonic()
        for row in measured(job, device, min(left, job.seconds)) if left > 5 else unmeasured(job):
            rows.append(row)
            console.print(text_of(row))
            report["rows"] = [_told(row) for row in rows]
            _write(file, report)
    for table in announce(rows):
        show_table(table)
    write_plot(rows, file.with_suffix(".png"))
    console.print(f"tests: {report['tests']['result']}; results are in {file}")


def tests(seconds: float) -> dict[str, str]:
    """What the tests of GPUs, and those of kernels that are compiled there, say in their last line."""
    places = [str(HERE.parent / "tests" / place) for place in ("gpu", "strips/test_triton.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *places]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, cwd=HERE.parent)
    except subprocess.TimeoutExpired:
        return {"result": f"took more than {seconds:.0f} s"}
    lines = [line for line in ran.stdout.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"result": lines[-1] if lines else ran.stderr[-300:], "failed": "; ".join(failed)}


def measured(job: Job, device: torch.device, seconds: float) -> Iterator[Row]:
    """The rows of a job, as soon as its process writes them. What it did not come to is told."""
    job, known = Job(job.model, job.items, seconds), set()
    with tempfile.TemporaryDirectory() as folder:
        file, said = Path(folder) / "rows", Path(folder) / "said"
        command = [sys.executable, str(HERE / "gpu_measure.py"), json.dumps(job.to_json()), str(device), str(file)]
        with said.open("w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            for row in _as_they_come(process, file, seconds + 20):
                known.add((row.variant, row.direction, row.size))
                yield row
            over = process.poll() is None
        finally:
            process.kill()
            process.wait()
        reason = "no time was left" if over else " ".join(said.read_text().split())[-200:] or "its process ended early"
    for row in unmeasured(job, reason):
        if (row.variant, row.direction, row.size) not in known:
            yield row


def _as_they_come(process: subprocess.Popen[bytes], file: Path, seconds: float) -> Iterator[Row]:
    """The rows in the file until the process ends or the time is over."""
    deadline, told, last = time.monotonic() + seconds, 0, False
    while not last:
        last = process.poll() is not None or time.monotonic() > deadline
        lines = file.read_text().split("\n")[:-1] if file.exists() else []  # a line that is being written has no end
        yield from (Row(**json.loads(line)) for line in lines[told:])
        told = len(lines)
        if not last:
            time.sleep(0.2)


def unmeasured(job: Job, reason: str = "no time was left") -> Iterator[Row]:
    for item in job.items:
        for way in item.ways:
            yield Row(way, job.model, item.direction, item.height, "", error=reason)


def served(service: Service, device: torch.device) -> list[dict[str, Any]]:
    """Answers a second for each number of clients; each answer is compared with the one that came alone."""
    words = ["-m", "remote_vae.cli.main", "serve", "--model", service.model, "--device", device.type]
    if service.model != "demo":
        words.append("--random-weights")
    try:
        with server(*words, "--max-client-share", "1", "--port") as port:
            return asyncio.run(_load(service, port))
    except (OSError, RuntimeError) as exc:
        return [{"model": service.model, "side": service.side, "error": str(exc)}]


async def _load(service: Service, port: int) -> list[dict[str, Any]]:
    target, cells = Target(f"http://127.0.0.1:{port}"), service.side // RATIO
    draw, rows = np.random.default_rng(0), []
    query = f"/?shape=1,{service.channels},{cells},{cells}&dtype=float16&do_scaling=True"
    shape = 1, service.channels, cells, cells
    bodies = [draw.standard_normal(shape).astype(np.float16).tobytes() for _ in range(4)]
    shots = await alone(target, [post(query, body, media="tensor/binary", accept="image/jpeg") for body in bodies])
    for clients in service.clients:
        await closed_load(target, shots, clients=clients, seconds=service.seconds / 5)
        answers = await closed_load(target, shots, clients=clients, seconds=service.seconds)
        found = summarise(answers, seconds=service.seconds)
        row = {"model": service.model, "side": service.side, "clients": clients, "answers a second": found.answered}
        row |= {"p50 s": found.p50_s, "p99 s": found.p99_s, "wrong": found.wrong, "lost": found.lost}
        console.print(f"{service.model} {service.side} {clients} clients: {found.answered:.1f} a second")
        rows.append(row | {"refused": found.refused})
    target.close()
    return rows


def _told(row: Row) -> dict[str, Any]:
    return {
        "model": row.model, "direction": row.direction, "size": row.size, "way": row.variant, "plan": row.plan,
        "dtype": row.dtype, "seconds": row.seconds, "first seconds": row.first_seconds, "peak bytes": row.peak_bytes,
        "PSNR to eager dB": row.psnr_db, "largest difference": row.max_abs, "error": row.error,
    }  # fmt: skip


def _write(file: Path, report: dict[str, Any]) -> None:
    """The file is replaced as a whole, so a run that is killed leaves the rows that it had."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    part.replace(file)


if __name__ == "__main__":
    run(main)
