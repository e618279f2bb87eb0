"""The tables of VRAM in docs/vram.md and the README, calculated and not measured: `python docs/figures/vram.py`.

Each architecture is built on the meta device, where tensors have no values, and every way to run it is asked what it
takes. So no GPU is needed, and the figures are what the planner goes by on one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from remote_vae.core.executor import PIECES, RECOMPUTE, STRIPS, TILES, WHOLE, Executor
from remote_vae.core.own_code import Rehearsed
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.vae import DiffusersVAE

ROOT: Final = Path(__file__).parents[2]
HEAD: Final = "| model | decodes to | weights | diffusers | diffusers, tiled | exact here, by plan |"
RULE: Final = "|---|---|--:|--:|--:|---|"
GIB: Final = 2**30
EXACT: Final = (STRIPS, RECOMPUTE, PIECES, "frames", "rows")  # the ways that are shown beside the model's own code


@dataclass(frozen=True, slots=True)
class Row:
    """A model and what it decodes to; `short` rows are in the README too."""

    model: str
    width: int
    height: int
    frames: int = 1
    short: bool = False


ROWS: Final = (
    Row("sd1", 1024, 1024),
    Row("sd1", 2048, 2048),
    Row("sdxl", 1024, 1024, short=True),
    Row("sdxl", 2048, 2048, short=True),
    Row("sdxl", 4096, 4096, short=True),
    Row("flux1", 1024, 1024),
    Row("flux1", 2048, 2048, short=True),
    Row("flux1", 4096, 4096),
    Row("flux2", 2048, 2048, short=True),
    Row("flux2", 4096, 4096),
    Row("hunyuan-image-2.1", 2048, 2048),
    Row("qwen-image", 1024, 1024),
    Row("qwen-image", 2048, 2048, short=True),
    Row("wan2.1", 832, 480, 81, short=True),
    Row("wan2.2-5b", 1280, 704, 121),
    Row("hunyuanvideo", 960, 544, 129, short=True),
)


def build(name: str) -> DiffusersVAE:
    """In the precision that a GPU takes by default."""
    model = MODELS[name]
    family = replace(family_of(model), statistics=lambda module: (None, None))  # values, which meta tensors have not
    overflows = model.honours_force_upcast and bool((model.config or {}).get("force_upcast"))
    with torch.device("meta"):
        module = family.load_class()(**(model.config or {}))
    torch.nn.Module.to(module, torch.float32 if overflows else getattr(torch, model.dtype))  # without a warning
    family.prepare(module)
    return DiffusersVAE(module.eval(), source="", revision="", family=family)


def shape_of(row: Row, vae: DiffusersVAE) -> tuple[int, ...]:
    """Of the latent as the decoder takes it."""
    info = vae.info
    sides = (row.height // info.spatial_compression_ratio, row.width // info.spatial_compression_ratio)
    channels = vae.module.config.get("z_dim") or vae.module.config.get("latent_channels")
    in_time = MODELS[row.model].recipe.has_frames or "temperal_downsample" in vae.module.config  # diffusers' spelling
    frames = (info.frames.latent(row.frames),) if in_time else ()
    return (1, channels, *frames, *sides)


def peak_gib(way: Executor, row: Row, vae: DiffusersVAE) -> float | None:
    """GiB beside the weights at the worst moment, the finished 8-bit pictures included."""
    output = row.width * row.height * row.frames * vae.info.pixel_channels
    shape = shape_of(row, vae)
    if way.name in (WHOLE, TILES) and isinstance(way, Rehearsed):  # as it is, and not the planner's quicker bound
        peak = way.peak_of_one(shape, vae.dtype)
        return None if peak is None else (peak + output) / GIB
    peak = way.peak_bytes(shape, vae.dtype, output)
    return None if peak is None else peak / GIB


def ways(vae: DiffusersVAE, name: str) -> list[Executor]:
    return [way for way in vae.decoders if way.name == name]


def cells(row: Row, vae: DiffusersVAE) -> Iterator[str]:
    """Of a row, in the table's order."""
    precision = str(vae.dtype).removeprefix("torch.")
    size = f"{row.width} x {row.height}" + (f" x {row.frames} frames" if row.frames > 1 else "")
    yield f"`{row.model}`, {precision}"
    yield size
    yield f"{vae.info.weight_bytes / GIB:.2f}"
    yield own(row, vae, WHOLE)
    yield own(row, vae, TILES)
    yield exact(row, vae)


def own(row: Row, vae: DiffusersVAE, name: str) -> str:
    """By diffusers' own code, whole or in tiles."""
    found = [peak_gib(way, row, vae) for way in ways(vae, name) if isinstance(way, Rehearsed)]
    return "" if not found or found[0] is None else f"{found[0]:.2f}"


def exact(row: Row, vae: DiffusersVAE) -> str:
    """By the plans that this project adds, those that need less memory last."""
    found: dict[str, float] = {}
    for name in EXACT:
        peaks = [peak for way in ways(vae, name) if (peak := peak_gib(way, row, vae)) is not None]
        if peaks:
            found[name] = min(peaks)
    return ", ".join(f"`{name}` {peak:.2f}" for name, peak in sorted(found.items(), key=lambda item: -item[1]))


def tables() -> tuple[list[str], list[str]]:
    """The lines of the whole table, and those of the README's."""
    built: dict[str, DiffusersVAE] = {}
    lines = {row: "| " + " | ".join(cells(row, built.setdefault(row.model, build(row.model)))) + " |" for row in ROWS}
    return [HEAD, RULE, *lines.values()], [HEAD, RULE, *(line for row, line in lines.items() if row.short)]


def replaced(page: Path, lines: list[str]) -> str:
    """The page with these lines in the place of its own table."""
    before, _, rest = page.read_text().partition(HEAD)
    return before + "\n".join(lines) + rest[rest.index("\n\n") :]


if __name__ == "__main__":
    for page, lines in zip((ROOT / "docs" / "vram.md", ROOT / "README.md"), tables(), strict=True):
        page.write_text(replaced(page, lines))
