"""A picture that diffusers' own decoder has no memory for: one decode by whatever the planner picks, with its peak.

    python benchmarks/large.py --model sd1 --size 4096 --dtype bfloat16 --json benchmarks/results/large.json

Beside the process's own peak stands what is predicted, and what the maps of diffusers' own decode would take: counted
on the meta device, where nothing is computed, at an eighth of the side, and 64 times that.
"""

import json
import resource
import time
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer
from rich.console import Console
from rich.progress import Progress

from remote_vae.core.decode import decode
from remote_vae.core.executor import RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.engine import malloc
from remote_vae.engine.memory import free_bytes
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Scaling

SHRUNK = 8  # the side, for what is counted only: maps grow with the pixels


def main(
    model: str = "sd1",
    size: Annotated[int, typer.Option(help="Side of the picture in pixels.")] = 4096,
    dtype: str = "bfloat16",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the row here.")] = None,
) -> None:
    """Decode one latent of noise into 8-bit pixels."""
    malloc.keep_freed()
    spec = ModelSpec(model, device="cpu", dtype=dtype, random_weights=model != "demo")
    vae, recipe = load(spec), spec.resolve_recipe()
    side = size // vae.info.spatial_compression_ratio
    z = torch.randn(1, vae.info.latent_channels, side, side, generator=torch.Generator().manual_seed(0))
    fit = fit_latent(recipe, vae.info, tuple(z.shape), model=model, height=None, width=None)
    malloc.give_back()  # what loading has left
    before = psutil.Process().memory_info().rss
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("strips", total=None)
        trim = malloc.Trim()

        def checkpoint() -> None:
            trim.when_due()
            progress.advance(task)

        terms = RunOptions(budget=lambda: free_bytes(vae.device), checkpoint=checkpoint)
        started = time.perf_counter()
        found = decode(vae, recipe, z, fit=fit, scaling=Scaling(), output=Output.UINT8, options=terms)
        seconds = time.perf_counter() - started
    row = {
        "model": model,
        "size": size,
        "dtype": dtype,
        "plan": found.plan,
        "cores": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "peak_gb": round((1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e9, 2),
        "predicted_gb": round((found.peak_bytes or 0) / 1e9, 2),
        "diffusers_gb": round(SHRUNK**2 * _of_diffusers(vae, z.shape[1], side // SHRUNK) / 1e9, 1),
        "machine_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "levels": len(found.tensor.unique()),
    }
    Console().print_json(json.dumps(row))
    if json_file is not None:
        json_file.write_text(json.dumps(row, indent=2) + "\n")


def _of_diffusers(vae: DiffusersVAE, channels: int, side: int) -> int:
    module = vae.module.to("meta")  # type: ignore[operator]
    with torch.inference_mode(), LiveBytes() as live:
        module.decode(torch.empty(1, channels, side, side, dtype=vae.dtype, device="meta"))
    return live.peak


if __name__ == "__main__":
    typer.run(main)
