"""Time, memory and quality of a VAE's decoding and encoding on this machine, beside diffusers and compilers.

python benchmarks/decode.py --models sd1 --sizes 512 --random-weights
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from command import run
from decode_cases import DIRECTIONS, OURS, PLANS, REFERENCE, RIVALS, VARIANTS, Case, Row
from decode_report import announce, plot, text_of, to_csv, write_plot
from rich.markup import escape
from rich.progress import Progress

from remote_vae.cli.files import check_output, write_file
from remote_vae.cli.terminal import console, show_table
from remote_vae.errors import ConfigurationError

HERE = Path(__file__).parent
LISTS = "Separate several by commas, or repeat the option."


def decode(
    models: Annotated[
        list[str],
        typer.Option(metavar="NAME[,NAME]", help=f"As for serve, also NAME=SOURCE,KEY=VALUE. {LISTS}"),
    ] = ["sd1", "sdxl"],  # noqa: B006  # typer copies it
    sizes: Annotated[list[str], typer.Option(metavar="PIXELS", help=f"Side of the picture. {LISTS}")] = [  # noqa: B006
        "512,1024,2048"
    ],
    directions: Annotated[list[str], typer.Option("--directions", "--direction", help=LISTS)] = ["decode,encode"],  # noqa: B006
    rivals: Annotated[
        list[str], typer.Option(help=f"all, none, or some of {', '.join(RIVALS)}. diffusers is always run. {LISTS}")
    ] = ["all"],  # noqa: B006
    plans: Annotated[
        list[str], typer.Option(help=f"all, none, or some of {', '.join(PLANS)}, the planner's own choice. {LISTS}")
    ] = ["all"],  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls after the first.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="Of every variant.", show_default="torch's own")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of our own rows: float32, float16 or bfloat16.")] = "bfloat16",
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Seeded weights of the true size; no download.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that one case may take.")] = 1800,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the rows here.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw seconds and memory: .png or .svg.")] = None,
) -> None:
    """Measure decoding and encoding by each plan and each rival, every one in a process of its own.

    Every output is compared with the one of diffusers in float32. What fails stays as a row, with the reason.
    """
    for path, suffixes in ((json_file, (".json",)), (csv_file, (".csv",)), (plot_file, (".png", ".svg"))):
        if path is not None:
            check_output(path, suffixes)
    if plot_file is not None:
        plot()  # refuses before the work, not after it, if matplotlib is missing
    cases = list(
        _cases(
            _specs(models, device=device, dtype=dtype, random_weights=random_weights),
            [_number(size) for size in _split(sizes)],
            _chosen(directions, DIRECTIONS, "--directions"),
            _variants(_chosen(plans, PLANS, "--plans"), _chosen(rivals, RIVALS, "--rivals")),
            repeats,
            threads,
        )
    )
    rows: list[Row] = []
    for row in _measure(cases, timeout):
        rows.append(row)
        if json_file is not None:  # after each row, so that a run which is stopped leaves what it has
            write_file(json_file, (json.dumps([asdict(row) for row in rows], indent=1) + "\n").encode())
        if csv_file is not None:
            write_file(csv_file, to_csv(rows).encode())
    for table in announce(rows):
        show_table(table)
    if plot_file is not None:
        write_plot(rows, plot_file)


def _split(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 8:
        raise ConfigurationError(f"--sizes {text!r} is not a number of pixels, 8 at least", size=text)
    return int(text)


def _chosen(values: list[str], known: tuple[str, ...], flag: str) -> list[str]:
    found = _split(values)
    if found == ["all"]:
        return list(known)
    if found == ["none"]:
        return []
    for name in found:
        if name not in known:
            raise ConfigurationError(f"{flag} {name!r} is not one of {', '.join(known)}", allowed=list(known))
    return found


def _specs(models: list[str], *, device: str, dtype: str, random_weights: bool) -> list[dict[str, object]]:
    """*Raises* ConfigurationError for a model that is not known."""
    try:
        from remote_vae.models.spec import parse_spec
    except ImportError as exc:
        raise ConfigurationError(
            "the server is not installed; run in remote-vae's folder: pip install '.[bench]'"
        ) from exc
    texts = [text for value in models for text in ([value] if "=" in value else _split([value]))]
    return [parse_spec(text, device=device, dtype=dtype, random_weights=random_weights).to_json() for text in texts]


def _variants(plans: list[str], rivals: list[str]) -> list[tuple[str, str | None]]:
    """Names and plans. The reference comes first, since all others are compared with what it wrote."""
    ours = [(OURS, None if plan == "chosen" else plan) for plan in plans]
    return [(REFERENCE, None), *ours, *((name, None) for name in rivals if name != REFERENCE)]


def _cases(
    specs: list[dict[str, object]],
    sizes: list[int],
    directions: list[str],
    variants: list[tuple[str, str | None]],
    repeats: int,
    threads: int | None,
) -> Iterator[Case]:
    for spec, direction, size in product(specs, directions, sizes):
        for variant, plan in variants:
            own = spec | {"dtype": VARIANTS[variant].dtype or spec["dtype"]}
            yield Case(variant, direction, size, plan, repeats, "", own, threads)


def _measure(cases: list[Case], timeout: float) -> Iterator[Row]:
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        for case in progress.track(cases, description="measuring"):
            file = f"{case.spec['name']}-{case.direction}-{case.size}.npy".replace("/", "-")
            row = _one(replace(case, reference=str(Path(folder, file))), Path(folder), timeout)
            console.print(escape(text_of(row)))
            yield row


def _one(case: Case, folder: Path, timeout: float) -> Row:
    """In a fresh process, so that nothing that ran before is in its memory, its caches or its compiled code."""
    result = folder / "row.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "decode_measure.py"), case.to_json(), str(result)]
    row = Row(case.variant, str(case.spec["name"]), case.direction, case.size, str(case.spec["dtype"]), case.plan)
    row = replace(row, chosen=case.variant == OURS and case.plan is None)
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return replace(row, error=f"took more than {timeout:g} s")
    if not result.is_file():
        return replace(row, error=_death(ended))
    return replace(row, **{**json.loads(result.read_text()), "chosen": row.chosen})


def _death(ended: subprocess.CompletedProcess[str]) -> str:
    if ended.returncode == -9:
        return "killed, as systems do when memory runs out"
    said = ended.stderr.strip().splitlines()
    return f"ended with code {ended.returncode}" + (f": {said[-1][:200]}" if said else "")


if __name__ == "__main__":
    run(decode)
