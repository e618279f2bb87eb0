"""What running latents together gains, by size, and whether each keeps the bits that it has alone.

    python benchmarks/batching.py --threads 2 --json benchmarks/results/batching.json

Two ways: all in one batch, and side by side, each on a core of its own, which is what the service does on a CPU of
several. Times are the least of several runs, since whatever else runs can only add to them.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from start import conditions
from table import show

from remote_vae.core.affine import Scaling
from remote_vae.core.decode import Output, decode
from remote_vae.core.execute import RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.models.loader import open_model
from remote_vae.models.spec import ModelSpec

SIDES, BATCHES, RUNS = (4, 8, 16, 32), (2, 4, 8), 5

Row = dict[str, object]


def main(
    model: str = "demo",
    threads: Annotated[int, typer.Option(help="0 leaves it to torch.")] = 1,
    random_weights: Annotated[bool, typer.Option("--random-weights")] = False,
    device: str = "cpu",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Decode latents of each size alone and together."""
    if threads:
        torch.set_num_threads(threads)
    vae, recipe = open_model(ModelSpec(model, device=device, random_weights=random_weights).to_json())

    def run(z: torch.Tensor, shares: int) -> torch.Tensor:
        fit = fit_latent(recipe, vae.info, tuple(z.shape), model=model, height=None, width=None)
        terms = RunOptions(shares=shares)
        return decode(vae, recipe, z, fit=fit, scaling=Scaling(own=True), output=Output.UINT8, options=terms).pixels

    noise, rows = torch.Generator().manual_seed(0), list[Row]()
    for side in SIDES:
        z = torch.randn(max(BATCHES), vae.info.latent_channels, side, side, generator=noise).to(vae.dtype)
        rows += [_row(run, z[:batch]) for batch in BATCHES]
    show(rows)
    if json_file is not None:
        found = {"conditions": conditions("diffusers"), "model": model, "threads": threads, "rows": rows}
        json_file.write_text(json.dumps(found, indent=1) + "\n")


def _row(run: Callable[[torch.Tensor, int], torch.Tensor], z: torch.Tensor) -> Row:
    batch = len(z)
    ways = {
        "alone": lambda: torch.cat([run(latent, 1) for latent in z.split(1)]),
        "batch": lambda: run(z, 1),
        "apart": lambda: run(z, batch),
    }
    found = {name: way() for name, way in ways.items()}
    times = [[_seconds(way) / batch for way in ways.values()] for _ in range(RUNS)]
    least = dict(zip(ways, map(min, zip(*times, strict=True)), strict=True))
    row: Row = {"picture": found["alone"].shape[1], "batch": batch, "alone_ms": round(least.pop("alone") * 1000, 1)}
    for name, seconds in least.items():
        row[f"{name}_ms"] = round(seconds * 1000, 1)
        row[f"{name}_same"] = torch.equal(found[name], found["alone"])
    return row


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
