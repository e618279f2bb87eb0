"""How long a request of a new size waits for its plan, for every architecture: `python benchmarks/planning.py`.

The planner predicts what a plan needs by a run on tensors without values, so no weights are made and nothing is
decoded. For each plan, in the order in which the planner asks, a row has the seconds of a first prediction in a process
that has made one for a small latent, as a server does at its start, those of the cores, which other work on the machine
changes less, the operators that ran, and the predicted bytes. A request that names no plan waits for the first plan
that fits, and at most for all of them.

    python benchmarks/planning.py --models vidtok,movq --add --json benchmarks/results/planning.json
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Final

import torch
import typer
from command import run
from start import conditions
from table import rows_in
from torch.utils._python_dispatch import TorchDispatchMode

from remote_vae.cli.terminal import console
from remote_vae.core.executor import Executor
from remote_vae.core.layout import example_shape

sys.path.append(str(Path(__file__).parents[1] / "docs" / "figures"))

import served

WARM_SIDE: Final = 4  # latent cells
SIZES: Final = {"readme": served.SIZES, "largest": served.Sizes(4096, 1280, 257)}


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts the operators of this thread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def main(
    size: Annotated[str, typer.Option(help=f"one of {', '.join(SIZES)}")] = "readme",
    models: Annotated[str, typer.Option(help="names, comma-separated; all without it")] = "",
    add: Annotated[bool, typer.Option("--add", help="keep rows of other models and sizes in the file")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="where rows are written")] = None,
) -> None:
    """Prints a row for each plan of each architecture, and writes them as JSON if asked."""
    wanted = set(models.split(",")) - {""}
    rows = rows_in(json_file) if add else []
    for group in served.groups():
        names = [model.name for model in group.models]
        if wanted and wanted.isdisjoint(names):
            continue
        rows = [row for row in rows if row["model"] not in names or row["size"] != size] + measure(group, size)
        if json_file is not None:
            json_file.write_text(json.dumps({"conditions": conditions("diffusers"), "rows": rows}, indent=1) + "\n")


@dataclass(frozen=True, slots=True)
class Watched:
    """An executor whose predictions are timed and noted."""

    inner: Executor
    asked: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def exact(self) -> bool:
        return self.inner.exact

    def suits(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        return self.inner.suits(shape, dtype)

    def peak_bytes(self, shape: tuple[int, ...], dtype: torch.dtype, output: int) -> int | None:
        started, cpu = time.perf_counter(), time.process_time()
        with Operators() as seen:
            peak = self.inner.peak_bytes(shape, dtype, output)
        seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
        self.asked.append({"plan": self.name, **seconds, "operators": seen.count, "bytes": peak})
        return peak


def measure(group: served.Group, size: str) -> list[dict[str, Any]]:
    """A row for each prediction that a request waits for if it names no plan and if nothing fits."""
    model, vae = group.models[0], group.build()
    small = example_shape(model.recipe, vae.info, WARM_SIDE)
    served.predicted(vae, model, small, sys.maxsize)  # as a server does, which decodes a small latent at its start
    shape, output = served.latent_of(vae, model, SIZES[size])
    rows: list[dict[str, Any]] = []
    watched = SimpleNamespace(
        info=vae.info, dtype=vae.dtype, device=vae.device, decoders=[Watched(way, rows) for way in vae.decoders]
    )
    served.predicted(watched, model, shape, 0)
    for row in rows:
        console.print(
            f"{model.name:24} {output:18} {row['plan']:16} {row['seconds']:7.2f} s, "
            f"{row['cpu_seconds']:7.2f} of the cores, {row['operators']:8} operators, "
            f"{(row['bytes'] or 0) / 2**30:.2f} GiB"
        )
    return [{"model": model.name, "size": size, "output": output, **row} for row in rows]


if __name__ == "__main__":
    run(main)
