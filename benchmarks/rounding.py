"""How near decodes in float32 are to the one in float64: diffusers' own and each of our plans.

    python benchmarks/rounding.py --size 512 --json benchmarks/results/rounding.json

An SD decoder with seeded random weights. Differences are shares of the output's largest value.
"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from start import conditions

from remote_vae.core.strip_threads import cores
from remote_vae.core.strips import strip_executors
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec


def main(
    size: Annotated[int, typer.Option(help="Side of the picture in pixels.")] = 512,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Decode the same latent every way."""
    vae = load(ModelSpec("sd1", device="cpu", dtype="float32", random_weights=True))
    side = size // vae.info.spatial_compression_ratio
    z = torch.randn(1, vae.info.latent_channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = {"diffusers": vae.decode(z)}
        assert vae.decoder is not None
        for way in reversed(strip_executors(vae.decoder, "cpu", cores(z.device))):  # several strips at a time win
            strips: list[torch.Tensor] = []
            way.run(z, lambda index, row, strip, into=strips: into.append(strip), lambda: None)  # type: ignore[misc]
            found[way.name] = torch.cat(strips, 2)
        torch.nn.Module.to(vae.module, torch.float64)
        exact = vae.decode(z.double())
    rows = [{"way": way} | _apart(pixels, exact) for way, pixels in found.items()]
    for row in rows:
        print(row)
    if json_file is not None:
        report = {"conditions": conditions("torch", "diffusers"), "size": size, "rows": rows}
        json_file.write_text(json.dumps(report, indent=1) + "\n")


def _apart(pixels: torch.Tensor, exact: torch.Tensor) -> dict[str, float]:
    apart, scale = pixels.double() - exact, float(exact.abs().max())
    return {
        "largest": float(f"{float(apart.abs().max()) / scale:.3g}"),
        "root_mean_square": float(f"{float(apart.square().mean().sqrt()) / scale:.3g}"),
    }


if __name__ == "__main__":
    typer.run(main)
