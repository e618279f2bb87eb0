"""Live tensor bytes of one decode at true widths: diffusers' own, and each of our exact plans. No weights are needed.

    python benchmarks/memory.py --size 1024 --dtype bfloat16

Counted are the tensors that a decode makes, output included, weights and any allocator's habits not. Pixels are
compared with diffusers' own in the same precision, in levels of uint8.
"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from table import show

from remote_vae.core.decode import decode
from remote_vae.core.executor import RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.strip_threads import cores
from remote_vae.core.strips import Strips, strip_executors
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Scaling

Row = dict[str, object]


def main(
    size: Annotated[int, typer.Option(help="Side of the picture in pixels.")] = 1024,
    model: str = "sd1",
    dtype: str = "bfloat16",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Decode once by each plan and print what was held."""
    vae = load(ModelSpec(model, device="cpu", dtype=dtype, random_weights=True))
    side = size // vae.info.spatial_compression_ratio
    z = torch.randn(1, vae.info.latent_channels, side, side, generator=torch.Generator().manual_seed(0)).to(vae.dtype)
    with torch.inference_mode(), LiveBytes() as live:
        reference = vae.decode(z).float()
    rows: list[Row] = [_row("diffusers", size, dtype, live.peak, None, 0.0)]
    if vae.decoder is None:
        raise SystemExit(f"{model} has no plans to compare")
    ways = strip_executors(vae.decoder, "cpu", cores(z.device))[:3]
    for way in track(ways, description="decoding", console=Console(stderr=True)):
        rows.append(_measure(vae, model, z, way, reference, size, dtype))
    show(rows)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=2) + "\n")


def _measure(
    vae: DiffusersVAE, model: str, z: torch.Tensor, way: Strips, reference: torch.Tensor, size: int, dtype: str
) -> Row:
    recipe = ModelSpec(model).resolve_recipe()
    fit = fit_latent(recipe, vae.info, tuple(z.shape), model=model, height=None, width=None)
    with LiveBytes() as live:
        options = RunOptions(way.name)
        found = decode(vae, recipe, z, fit=fit, scaling=Scaling(), output=Output.UINT8, options=options).tensor
    predicted = way.peak_bytes(tuple(z.shape), z.dtype, found.nbytes)
    levels = (reference * 127.5 + 127.5).clamp(0, 255).round()[0].permute(1, 2, 0)
    return _row(way.name, size, dtype, live.peak, predicted, float((found[0].float() - levels).abs().max()))


def _row(plan: str, size: int, dtype: str, peak: int, predicted: int | None, levels: float) -> Row:
    return {
        "plan": plan,
        "size": size,
        "dtype": dtype,
        "peak_bytes": peak,
        "predicted_bytes": predicted,
        "elements_per_pixel": round(peak / size**2 / getattr(torch, dtype).itemsize, 1),
        "max_levels_apart": levels,
    }


if __name__ == "__main__":
    typer.run(main)
