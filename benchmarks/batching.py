"""What running latents together gains, by size, and whether each keeps the bits that it has alone.

    python benchmarks/batching.py --threads 1 --json benchmarks/results/batching.json

Times are the least of several runs, since whatever else runs can only add to them.
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

from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec

SIDES, BATCHES, RUNS = (4, 8, 16, 32, 64), (2, 4, 8), 5

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
    vae = load(ModelSpec(model, device=device, random_weights=random_weights))
    noise = torch.Generator().manual_seed(0)
    rows: list[Row] = []
    with torch.inference_mode():
        for side in SIDES:
            z = torch.randn(max(BATCHES), vae.facts.latent_channels, side, side, generator=noise).to(device, vae.dtype)
            rows += [_row(vae.decode, z[:batch]) for batch in BATCHES]
    show(rows)
    if json_file is not None:
        found = {"conditions": conditions("diffusers"), "model": model, "threads": threads, "rows": rows}
        json_file.write_text(json.dumps(found, indent=1) + "\n")


def _row(decode: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor) -> Row:
    alone, together = decode(z[:1]), decode(z)
    exact = all(torch.equal(decode(z[index : index + 1]), together[index : index + 1]) for index in range(len(z)))
    times = [[_seconds(lambda: decode(z[:1])), _seconds(lambda: decode(z)) / len(z)] for _ in range(RUNS)]
    one, each = (min(column) for column in zip(*times, strict=True))
    return {
        "latent": z.shape[-1],
        "picture": alone.shape[-1],
        "batch": len(z),
        "alone_ms": round(one * 1000, 1),
        "each_together_ms": round(each * 1000, 1),
        "times_as_fast": round(one / each, 2),
        "same_bits": exact,
    }


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
