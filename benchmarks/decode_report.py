"""What is made of the rows: a line each, the tables, CSV and a plot."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from importlib import import_module
from io import StringIO
from itertools import groupby
from pathlib import Path
from types import ModuleType

from decode_cases import OURS, Row
from rich.table import Table

from remote_vae.errors import ConfigurationError

# As in the announcement of Hugging Face's endpoints; the first that ran stands for what a user has today.
TODAY = ("diffusers-bf16", "diffusers")
TILED = ("diffusers-tiled",)


def text_of(row: Row) -> str:
    """One line for the eye, while the measuring goes on."""
    head = f"{row.model} {row.direction} {row.size} {_label(row)}"
    if row.seconds is None:
        return f"{head}: {row.error}"
    quality = "equal" if row.max_abs == 0 else f"{_number(row.psnr_db, '.1f')} dB"
    return f"{head}: {row.seconds:.3f} s, {_mega(row.peak_bytes or row.rss_bytes)} MB, {quality}"


def announce(rows: list[Row]) -> Iterator[Table]:
    """The announcement's table with our plans beside it, then every row."""
    head = Table(
        *("device", "model", "", "resolution", "time (s)", "memory (%)", "tiled time (s)", "tiled memory (%)"),
        *(f"{plan} {what}" for plan in ("whole", "strips", "recompute") for what in ("(s)", "(%)")),
        title="what a user has today, and our plans",
    )
    for group in _pictures(rows):
        first = group[0]
        cells = [first.device_name, first.model, first.direction, f"{first.size}x{first.size}"]
        for row in (_find(group, TODAY), _find(group, TILED), *_plans(group)):
            cells += [_seconds(row), _share(row)]
        head.add_row(*cells)
    yield head
    yield _every(rows)


def _every(rows: list[Row]) -> Table:
    table = Table(
        *("model", "", "size", "variant", "dtype", "seconds", "times ours", "first (s)", "live MB", "grown MB"),
        *("PSNR (dB)", "max difference"),
        title="every row",
    )
    for group in _pictures(rows):
        ours = min((row.seconds for row in group if row.variant == OURS and row.seconds), default=None)
        for row in group:
            cells = [row.model, row.direction, str(row.size), _label(row) + _threads(row, group), row.dtype]
            if row.seconds is None:
                table.add_row(*cells, "-", style="dim", end_section=row is group[-1])
                table.add_row("", "", "", f"[red]{row.error}[/]")
                continue
            ratio = f"{row.seconds / ours:.2f}" if ours else "-"
            cells += [f"{row.seconds:.3f}", ratio, _number(row.first_seconds, ".2f")]
            cells += [_mega(row.peak_bytes), _mega(row.rss_bytes)]
            cells += ["equal" if row.max_abs == 0 else _number(row.psnr_db, ".1f"), _number(row.max_abs, ".1e")]
            table.add_row(*cells, end_section=row is group[-1])
    return table


def _pictures(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of one model, direction and size together, which are the ones to compare."""
    return [list(group) for _, group in groupby(rows, lambda row: (row.model, row.direction, row.size))]


def _find(group: list[Row], names: tuple[str, ...]) -> Row | None:
    return next((row for name in names for row in group if row.variant == name and row.seconds is not None), None)


def _plans(group: list[Row]) -> list[Row | None]:
    """Ours by plan; asked for by name, so that a plan is there once."""
    ours = {row.plan: row for row in group if row.variant == OURS and not row.chosen}
    return [ours.get(plan) for plan in ("whole", "strips", "strips-recompute")]


def _label(row: Row) -> str:
    if row.variant != OURS:
        return row.variant
    return f"ours {row.plan or 'by the planner'}" + (" (chosen)" if row.chosen and row.plan else "")


def _threads(row: Row, group: list[Row]) -> str:
    """Said where they are not those of the reference, because such times are not to be compared."""
    return "" if row.threads in (None, group[0].threads) else f", {row.threads} threads"


def _seconds(row: Row | None) -> str:
    return "-" if row is None or row.seconds is None else f"{row.seconds:.3f}"


def _share(row: Row | None) -> str:
    used = None if row is None else row.peak_bytes or row.rss_bytes
    return "-" if row is None or used is None or not row.device_bytes else f"{100 * used / row.device_bytes:.1f}"


def _mega(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f}"


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def to_csv(rows: list[Row]) -> str:
    """The same fields as the JSON; an empty cell is its null."""
    text = StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def plot() -> ModuleType:
    """matplotlib's pyplot, without a screen. *Raises* ConfigurationError when it is not installed."""
    try:
        import matplotlib
    except ImportError as exc:
        raise ConfigurationError("--plot needs matplotlib; run in remote-vae's folder: pip install '.[bench]'") from exc
    matplotlib.use("agg")
    return import_module("matplotlib.pyplot")


def write_plot(rows: list[Row], path: Path) -> None:
    """A line of panels per model, direction and size: seconds, and memory."""
    pyplot, groups = plot(), _pictures(row for row in rows if row.seconds is not None)
    height = sum(0.3 * len(group) + 0.9 for group in groups)
    ratios = [len(group) + 2 for group in groups]
    figure, axes = pyplot.subplots(
        max(1, len(groups)), 2, figsize=(11, max(2, height)), squeeze=False, height_ratios=ratios or None
    )
    for group, (left, right) in zip(groups, axes, strict=False):
        names = [_label(row) + _threads(row, group) for row in group]
        colours = ["C1" if row.variant == OURS else "C0" for row in group]
        left.barh(names, [row.seconds for row in group], color=colours)
        right.barh(names, [(row.peak_bytes or row.rss_bytes or 0) / 1e6 for row in group], color=colours)
        left.set_title(f"{group[0].model} {group[0].direction} {group[0].size}: seconds", fontsize=9)
        right.set_title("MB of tensors, or by which the process grew", fontsize=9)
        right.set_yticks([])
        for panel in (left, right):
            panel.invert_yaxis()
            panel.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
