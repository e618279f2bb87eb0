"""What a second core is worth: strips side by side, strips whose operations OpenMP shares out, and diffusers.

    python benchmarks/cores.py --model demo --size 512 --json benchmarks/results/cores.json

As in a replica: freed memory is kept, and OpenMP's idle threads sleep. Rounds go through all rows in turn; the median
is given, and how many times a row is as fast as the same code on one core.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch
import typer
from rich.console import Console
from rich.progress import track
from table import show

from remote_vae.core.strips import strip_executors
from remote_vae.engine import malloc
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec
from remote_vae.models.vae import DiffusersVAE

PLANS = ("strips", "strips-recompute")


def main(
    model: str = "demo",
    size: Annotated[int, typer.Option(help="Side of the picture in pixels.")] = 512,
    dtype: str = "float32",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Decode by each way, on one core and on all."""
    malloc.keep_freed()
    vae = load(ModelSpec(model, device="cpu", dtype=dtype, random_weights=model != "demo"))
    side = size // vae.info.spatial_compression_ratio
    z = torch.randn(1, vae.info.latent_channels, side, side, generator=torch.Generator().manual_seed(0)).to(vae.dtype)
    cores = torch.get_num_threads()
    ways = {(name, count): way for count in (1, cores) for name, way in _ways(vae, z, count).items()}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in ways}
    for _ in track(range(rounds + 1), description="decoding", console=Console(stderr=True)):
        for key, way in ways.items():
            torch.set_num_threads(key[1])
            started = time.perf_counter()
            way()
            seconds[key].append(time.perf_counter() - started)
    medians = {key: statistics.median(found[1:]) for key, found in seconds.items()}  # the first sets things up
    rows = [
        {
            "model": model,
            "size": size,
            "dtype": dtype,
            "way": name,
            "cores": count,
            "ms": round(1000 * found, 1),
            "times_one_core": round(medians[name, 1] / found, 2) if (name, 1) in medians else None,
        }
        for (name, count), found in medians.items()
    ]
    show(rows)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=2) + "\n")


def _ways(vae: DiffusersVAE, z: torch.Tensor, cores: int) -> dict[str, Callable[[], None]]:
    program = vae.decoder
    assert program is not None
    ways: dict[str, Callable[[], None]] = {"diffusers": torch.inference_mode()(lambda: vae.decode(z))}
    for plan in PLANS:
        for workers in sorted({1, cores}):
            strips = next(way for way in strip_executors(program, "cpu", workers) if way.name == plan)
            name = plan if workers == cores else f"{plan}, shared out by OpenMP"
            ways[name] = partial(strips.run, z, lambda *block: None, lambda: None)
    return ways


if __name__ == "__main__":
    typer.run(main)
