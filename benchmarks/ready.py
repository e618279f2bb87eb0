"""How long until a model is served, and what of that is importing what opens it.

    python benchmarks/ready.py --json benchmarks/results/ready.json

`remote-vae serve` with the demo VAE until /ready says yes; and a fresh Python that imports torch alone, the loader with
all that diffusers takes along, and the loader as replicas import it. Taken in turn; medians, in seconds.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from start import conditions, server

IMPORTS = {
    "import torch": "torch",
    "import the loader": "remote_vae.models.loader",
    "import the loader as a replica": "remote_vae.models.lean",
}


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Start each in turn."""
    steps: dict[str, Callable[[], float]] = {name: partial(_import, module) for name, module in IMPORTS.items()}
    steps["serve until ready"] = _serve
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in track(range(rounds), description="starting", console=Console(stderr=True)):
        for name, step in steps.items():
            seconds[name].append(step())
    medians = {name: round(statistics.median(found), 2) for name, found in seconds.items()}
    table = Table("", "seconds")
    for name, found in medians.items():
        table.add_row(name, str(found))
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps({"conditions": conditions("diffusers"), "seconds": medians}, indent=2) + "\n")


def _import(module: str) -> float:
    # Taking torch down in good order takes a second that no server waits for.
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import os, {module}; os._exit(0)"], check=True)
    return time.perf_counter() - started


def _serve() -> float:
    started = time.perf_counter()
    with server("-m", "remote_vae.cli.main", "serve", "--port"):
        return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
