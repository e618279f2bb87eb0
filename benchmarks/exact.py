"""Time and memory of every exact plan of a model beside diffusers' own code: `python benchmarks/exact.py`.

True architectures with seeded random weights, on this machine's CPU in float32. The plans of a case run one after the
other in one process, several times; a time is the least of these. Idle threads sleep and the process keeps freed
memory, as in replicas. Memory is the most bytes of tensors that are alive, weights and input not counted. `apart` is
the largest difference from diffusers' output, relative to its largest value. With `--float64`, diffusers' code runs in
float64 too, and the largest difference from that is told for every plan and for diffusers' code in float32: how much of
`apart` is whose rounding. Cases that are too large are only predicted, on weights without values.
"""

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch
import typer
from command import run
from decode_measure import about

from remote_vae.cli.terminal import console
from remote_vae.core.executor import WHOLE, Executor
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.own_code import OwnCode
from remote_vae.engine import malloc
from remote_vae.errors import InvalidValue
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.vae import DiffusersVAE

# The shape of the input, for each direction.
CASES: Final = {
    "kvae-2d-512": ("kvae-2d", "decode", (1, 16, 64, 64)),
    "kvae-2d-512-encode": ("kvae-2d", "encode", (1, 3, 512, 512)),
    "stable-cascade-512": ("stable-cascade", "decode", (1, 4, 128, 128)),
    "stable-cascade-512-encode": ("stable-cascade", "encode", (1, 3, 512, 512)),
    "ldm-512": ("ldm-super-resolution", "decode", (1, 3, 128, 128)),
    "ldm-512-encode": ("ldm-super-resolution", "encode", (1, 3, 512, 512)),
    "movq-512": ("movq", "decode", (1, 4, 64, 64)),
    "movq-512-encode": ("movq", "encode", (1, 3, 512, 512)),
    "asymmetric-512": ("asymmetric", "decode", (1, 4, 64, 64)),
    "asymmetric-512-encode": ("asymmetric", "encode", (1, 3, 512, 512)),
    "qwen-image-512": ("qwen-image", "decode", (1, 16, 1, 64, 64)),
    "qwen-image-512-encode": ("qwen-image", "encode", (1, 3, 1, 512, 512)),
    "qwen-image-1024": ("qwen-image", "decode", (1, 16, 1, 128, 128)),
    "wan2.1": ("wan2.1", "decode", (1, 16, 5, 30, 52)),
    "wan2.1-encode": ("wan2.1", "encode", (1, 3, 17, 240, 416)),
    "wan2.1-small": ("wan2.1", "decode", (1, 16, 3, 16, 24)),
    "hunyuanvideo": ("hunyuanvideo", "decode", (1, 16, 5, 20, 32)),
    "hunyuanvideo-encode": ("hunyuanvideo", "encode", (1, 3, 17, 160, 256)),
    "ltx2": ("ltx2", "decode", (1, 128, 7, 8, 12)),
    "ltx2-encode": ("ltx2", "encode", (1, 3, 49, 256, 384)),
    "ltx2-small": ("ltx2", "decode", (1, 128, 3, 4, 6)),
    "ltx": ("ltx", "decode", (1, 128, 5, 8, 12)),
    "ltx-encode": ("ltx", "encode", (1, 3, 33, 256, 384)),
    "mochi": ("mochi", "decode", (1, 12, 3, 20, 32)),
    "mochi-encode": ("mochi", "encode", (1, 3, 13, 160, 256)),
    "vidtok": ("vidtok", "decode", (1, 4, 3, 16, 24)),
    "vidtok-encode": ("vidtok", "encode", (1, 3, 9, 128, 192)),
    "cosmos": ("cosmos", "decode", (1, 16, 5, 30, 52)),
    "cosmos-encode": ("cosmos", "encode", (1, 3, 17, 240, 416)),
    "kandinsky6-sr": ("kandinsky6-sr", "decode", (1, 64, 3, 4, 6)),
    "kandinsky6-sr-encode": ("kandinsky6-sr", "encode", (1, 3, 17, 96, 128)),
    "kvae-3d": ("kvae-3d", "decode", (1, 16, 5, 12, 16)),
    "kvae-3d-encode": ("kvae-3d", "encode", (1, 3, 17, 96, 128)),
}
# Those that are only predicted, and in which format of numbers.
PREDICTED: Final = {
    "wan2.1-720": ("wan2.1", "decode", (1, 16, 21, 90, 160), torch.bfloat16),
    "hunyuanvideo-720": ("hunyuanvideo", "decode", (1, 16, 33, 90, 160), torch.bfloat16),
}
WEIGHTS_SEED, INPUT_SEED = 0, 1


def main(
    cases: Annotated[str, typer.Option(help="names of cases, comma-separated")] = ",".join((*CASES, *PREDICTED)),
    rounds: Annotated[int, typer.Option(help="how often each plan runs")] = 2,
    float64: Annotated[bool, typer.Option("--float64", help="also compare with diffusers' code in float64")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="where rows are written")] = None,
) -> None:
    """Prints a row for each plan of each case, and writes them as JSON if asked."""
    malloc.keep_freed()
    rows: list[dict[str, Any]] = []
    for name in cases.split(","):
        if name not in CASES and name not in PREDICTED:
            raise InvalidValue(f"case {name!r} is not one of {', '.join((*CASES, *PREDICTED))}", name="cases")
        rows += measure(name, rounds, float64=float64) if name in CASES else predict(name)
        if json_file is not None:
            json_file.write_text(json.dumps({"about": about(torch.device("cpu")), "rows": rows}, indent=1) + "\n")


@torch.inference_mode()
def measure(name: str, rounds: int, *, float64: bool) -> list[dict[str, Any]]:
    model, direction, shape = CASES[name]
    given = torch.randn(shape, generator=torch.Generator().manual_seed(INPUT_SEED))
    ways: dict[str, Executor] = {}
    for way in _ways(model, direction, torch.device("cpu"), torch.float32):
        if way.name != WHOLE or isinstance(way, OwnCode):
            ways.setdefault(way.name, way)  # of two of a name, the one that needs less memory is for little of it
    exact = _in_float64(model, direction, given) if float64 else None
    runs: dict[str, list[Timed]] = {plan: [] for plan in ways}
    for _ in range(rounds):
        for plan, way in ways.items():
            runs[plan].append(_timed(way, given))
    reference = runs[WHOLE][0].output
    rows = []
    for plan, way in ways.items():
        with LiveBytes() as live:
            way.run(given, lambda first, row, block: None, lambda: None)
        fastest = min(runs[plan], key=lambda run: run.seconds)
        rows.append(
            {
                "case": name,
                "plan": plan,
                "seconds": fastest.seconds,
                "first_block_seconds": fastest.first_block_seconds,
                "live_bytes": live.peak,
                "predicted_bytes": (way.peak_bytes(shape, torch.float32, 0) or 0) - given.nbytes,  # which counts it
                "apart": _apart(fastest.output, reference),
            }
        )
        if exact is not None:
            rows[-1]["apart_from_float64"] = _apart(fastest.output, exact)
    _show(rows)
    return rows


def predict(name: str) -> list[dict[str, Any]]:
    model, direction, shape, dtype = PREDICTED[name]
    rows = []
    for way in _ways(model, direction, torch.device("meta"), dtype):
        rows.append({"case": name, "plan": way.name, "predicted_bytes": way.peak_bytes(shape, dtype, 0)})
        console.print(f"{name:22} {way.name:16} predicted {(rows[-1]['predicted_bytes'] or 0) / 1e6:.0f} MB")
    return rows


def _ways(model: str, direction: str, device: torch.device, dtype: torch.dtype) -> list[Executor]:
    """The exact plans."""
    family = family_of(MODELS[model])
    torch.manual_seed(WEIGHTS_SEED)
    with device:
        module = family.load_class()(**(MODELS[model].config or {})).eval().to(dtype)
    family.prepare(module)
    vae = DiffusersVAE(module, source="seeded", revision="", family=family)
    return [way for way in (vae.decoders if direction == "decode" else vae.encoders) if way.exact]


def _in_float64(model: str, direction: str, given: torch.Tensor) -> torch.Tensor:
    ways = _ways(model, direction, torch.device("cpu"), torch.float64)
    return _timed(next(way for way in ways if isinstance(way, OwnCode)), given.double()).output


def _apart(found: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found - reference).abs().max() / reference.abs().max())


class Timed(NamedTuple):
    """A run: its seconds, those until its first block, and its output."""

    seconds: float
    first_block_seconds: float
    output: torch.Tensor


def _timed(way: Executor, given: torch.Tensor) -> Timed:
    blocks: list[tuple[int, int, torch.Tensor]] = []
    times: list[float] = []

    def take(first: int, row: int, block: torch.Tensor) -> None:
        times.append(time.perf_counter())
        blocks.append((first, row, block.clone()))

    started = time.perf_counter()
    way.run(given, take, lambda: None)
    seconds = time.perf_counter() - started
    frames = max(first + len(block) for first, _, block in blocks)
    height = max(row + block.shape[2] for _, row, block in blocks)
    found = blocks[0][2].new_empty(frames, blocks[0][2].shape[1], height, blocks[0][2].shape[3])
    for first, row, block in blocks:
        found[first : first + len(block), :, row : row + block.shape[2]] = block
    return Timed(seconds, times[0] - started, found)


def _show(rows: list[dict[str, Any]]) -> None:
    own = next(row for row in rows if row["plan"] == "whole")
    for row in rows:
        console.print(
            f"{row['case']:22} {row['plan']:16} {row['seconds']:7.2f} s ({own['seconds'] / row['seconds']:.2f} times "
            f"diffusers' speed), first block {row['first_block_seconds']:.2f} s, {row['live_bytes'] / 1e6:6.0f} MB "
            f"({row['live_bytes'] / own['live_bytes']:.2f}), predicted {(row['predicted_bytes'] or 0) / 1e6:.0f} MB, "
            f"apart {row['apart']:.1e}"
            + (f", from float64 {row['apart_from_float64']:.1e}" if "apart_from_float64" in row else "")
        )


if __name__ == "__main__":
    run(main)
