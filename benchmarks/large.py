"""A picture or video that takes long and much memory: one decode by whatever the planner picks, with its peak.

    python benchmarks/large.py --model sd1 --size 4096x4096 --dtype bfloat16 --json benchmarks/results/large.json
    python benchmarks/large.py --model hunyuanvideo --size 512x320x61 --dtype float32 --json FILE

Beside the process's own peak stands what is predicted, and what the model's own code would take as a whole: predicted
for a video; for a picture counted on the meta device, where nothing is computed, at an eighth of the side, and 64 times
that.
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
    size: Annotated[str, typer.Option(help="Width, height, and frames of a video, with x between them.")] = "4096x4096",
    dtype: str = "bfloat16",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the row here.")] = None,
) -> None:
    """Decode one latent of noise into 8-bit pixels."""
    malloc.keep_freed()
    spec = ModelSpec(model, device="cpu", dtype=dtype, random_weights=model != "demo")
    vae, recipe = load(spec), spec.resolve_recipe()
    width, height, *frames = map(int, size.split("x"))
    sides = (height // vae.info.spatial_compression_ratio, width // vae.info.spatial_compression_ratio)
    if frames:
        sides = ((frames[0] - 1) // vae.info.temporal_compression_ratio + 1, *sides)
    z = torch.randn(1, vae.info.latent_channels, *sides, generator=torch.Generator().manual_seed(0))
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
        "diffusers_gb": round(_of_diffusers(vae, z) / 1e9, 1),
        "machine_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "levels": len(found.tensor.unique()),
    }
    Console().print_json(json.dumps(row))
    if json_file is not None:
        json_file.write_text(json.dumps(row, indent=2) + "\n")


def _of_diffusers(vae: DiffusersVAE, z: torch.Tensor) -> int:
    if z.ndim > 4:
        return next(way for way in vae.decoders if way.name == "whole").peak_bytes(tuple(z.shape), vae.dtype, 1) or 0
    module = vae.module.to("meta")  # type: ignore[operator]
    small = torch.empty(1, z.shape[1], *(side // SHRUNK for side in z.shape[2:]), dtype=vae.dtype, device="meta")
    with torch.inference_mode(), LiveBytes() as live:
        module.decode(small)
    return SHRUNK**2 * live.peak


if __name__ == "__main__":
    typer.run(main)
