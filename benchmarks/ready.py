"""How long until a model is served, and what of that is importing what opens it; the memory that this takes.

    python benchmarks/ready.py --json benchmarks/results/ready.json

`remote-vae serve` with the demo VAE until /ready says yes, and what its processes then hold; and a fresh Python that
imports torch alone, the loader with all that diffusers takes along, and the loader as replicas import it. Taken in
turn; medians, in seconds and MB of resident memory.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from start import conditions, server

IMPORTS = {
    "import torch": "torch",
    "import the loader": "remote_vae.models.loader",
    "import the loader as a replica": "remote_vae.models.fast_import",
}


Figures = tuple[float, float]  # seconds, MB


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Start each in turn."""
    steps: dict[str, Callable[[], Figures]] = {name: partial(_import, module) for name, module in IMPORTS.items()}
    steps["serve until ready"] = _serve
    found: dict[str, list[Figures]] = {name: [] for name in steps}
    for _ in track(range(rounds), description="starting", console=Console(stderr=True)):
        for name, step in steps.items():
            found[name].append(step())
    table, rows = Table("", "seconds", "MB"), {}
    for name, each in found.items():
        seconds, megabytes = (statistics.median(values) for values in zip(*each, strict=True))
        rows[name] = {"seconds": round(seconds, 2), "megabytes": round(megabytes)}
        table.add_row(name, *(str(value) for value in rows[name].values()))
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps({"conditions": conditions("diffusers"), "rows": rows}, indent=2) + "\n")


def _import(module: str) -> Figures:
    # Taking torch down in good order takes a second that no server waits for.
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", f"import os, {module}; os._exit(0)"])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"import {module} ended with {process.returncode}")
    return time.perf_counter() - started, used.ru_maxrss / 1e3  # Linux counts in KB


def _serve() -> Figures:
    started = time.perf_counter()
    with server("-m", "remote_vae.cli.main", "serve", "--port"):
        seconds = time.perf_counter() - started
        return seconds, sum(each.memory_info().rss for each in psutil.Process().children(recursive=True)) / 1e6


if __name__ == "__main__":
    typer.run(main)
