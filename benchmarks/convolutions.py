"""How fast this CPU convolves and multiplies, in the shapes of an SD decoder's strips: the bound on what a plan can do.

    python benchmarks/convolutions.py --json benchmarks/results/convolutions.json

The median of several calls is taken, in GFLOP/s on the threads that torch has. The rates of `core.four_rows` and
`core.winograd` count the operations of the definition too, though they do fewer: a rate twice as high is half of the
time. `error` is the root mean square of the difference to float64.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from start import conditions
from torch.nn import functional

from remote_vae.core import winograd
from remote_vae.core.four_rows import FourRows
from remote_vae.core.stages import Convolution

SHAPES = ((512, 512, 64, 64), (512, 512, 16, 128), (256, 256, 16, 256), (256, 128, 8, 512), (128, 128, 8, 512))
PRODUCTS = ((1024, 512, 512), (1024, 512, 4096), (256, 512, 16384))  # the last two are attention's scores
CALLS = 15


def main(json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None) -> None:
    """Measure both precisions."""
    rows = []
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for shape in SHAPES:
                rows += _convolutions(shape, dtype)
            for shape in PRODUCTS:
                rows.append({"what": "product", "shape": shape} | _product(shape, dtype))
    for row in rows:
        print(row)
    if json_file is not None:
        json_file.write_text(
            json.dumps({"conditions": conditions("torch"), "threads": torch.get_num_threads(), "rows": rows}, indent=1)
            + "\n"
        )


def _convolutions(shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[dict[str, object]]:
    before, after, rows, width = shape
    padded = torch.randn(1, before, rows + 2, width + 2).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (torch.randn(after, before, 3, 3) / (9 * before) ** 0.5).to(dtype)
    kernel = winograd.recombine(winograd.CONVOLUTION, weight)
    four_rows = FourRows(Convolution(weight, None, repeats=True), rows, width)  # so that it adds no columns
    exact = functional.conv2d(padded.double(), weight.double())
    calls = {
        "convolution 3x3": lambda: functional.conv2d(padded, weight),
        "the same by core.four_rows": lambda: four_rows(padded, rows, width),
        "the same by core.winograd": lambda: winograd.convolve(
            winograd.CONVOLUTION, padded, kernel, None, winograd.CONVOLUTION.tiles(rows, width)
        ),
    }
    found = []
    for name, call in calls.items():
        row = {"what": name, "shape": shape} | _rate(2 * 9 * before * after * rows * width, dtype, call)
        found.append(row | {"error": float(f"{(call().double() - exact).square().mean().sqrt():.2g}")})
    return found


def _product(shape: tuple[int, int, int], dtype: torch.dtype) -> dict[str, object]:
    rows, inner, columns = shape
    left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
    return _rate(2 * rows * inner * columns, dtype, lambda: left @ right.T)


def _rate(operations: int, dtype: torch.dtype, call: Callable[[], torch.Tensor]) -> dict[str, object]:
    call()
    seconds = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    return {"dtype": str(dtype).removeprefix("torch."), "gflops": round(operations / median / 1e9)}


if __name__ == "__main__":
    typer.run(main)
