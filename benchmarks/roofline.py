"""What a decode would cost on cards that are not here: kernels, products and bytes are counted, times calculated.

    python benchmarks/roofline.py --json benchmarks/results/roofline.json

diffusers' own code and each of our exact plans run on tensors without values. `roofline_account.py` says what a CUDA
build of PyTorch would launch for every operator, `roofline_cards.py` what that costs on a card and how host and device
overlap. The published times of others are calculated first, and shown beside what was measured: that is how far the
rules can be trusted. Nothing here was measured on a GPU.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer
from command import run
from rich.console import Console
from roofline_cards import CARDS, cost, device_seconds
from roofline_cases import PICTURES, PUBLISHED, VIDEOS, Case, Counted, count, ways
from table import show

Row = dict[str, Any]


def main(
    models: Annotated[str, typer.Option(help="Which of the models, by commas; all if it is empty.")] = "",
    sizes: Annotated[str, typer.Option(help="Which heights in pixels, by commas; all if it is empty.")] = "",
    operators: Annotated[bool, typer.Option("--operators", help="The operators of each way, too.")] = False,
    check: Annotated[bool, typer.Option(help="Calculate what others measured, too.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
) -> None:
    """Print what each way to decode launches, and what that takes on each card, in calculated milliseconds."""
    chosen = [case for case in (*PICTURES, *VIDEOS) if _is_chosen(case, models, sizes)]
    checks = published() if check else []
    found = [(case, count(case, way)) for case in chosen for way in ways(case)]
    rows = [row_of(*pair) for pair in found]
    parts = [part for pair in found for part in operators_of(*pair)] if operators else []
    tables = {"calculated beside published": checks, "counted": [row.copy() for row in rows], "operators": parts}
    tables |= {f"{name}, calculated milliseconds": by_way(rows, f"{name} ms") for name in CARDS}
    for row in tables["counted"]:
        for name in CARDS:
            del row[f"{name} ms"]
    for title, table in tables.items():
        if table:
            Console().print(title)
            show(table)
    if json_file is not None:
        kinds = {"note": "calculated from counted kernels, never measured on a GPU", "cards": CARD_ROWS}
        report = kinds | {"beside published figures": checks, "calculated": rows}
        json_file.write_text(json.dumps(report, indent=1) + "\n")


def _is_chosen(case: Case, models: str, sizes: str) -> bool:
    return (not models or case.model in models.split(",")) and (not sizes or str(case.height) in sizes.split(","))


def by_way(rows: list[Row], column: str) -> list[Row]:
    """One column of all rows, with the ways side by side."""
    names = dict.fromkeys(row["way"] for row in rows)
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row["model"], row["size"]
        empty = {"model": key[0], "size": key[1]} | dict.fromkeys(names, "")
        found.setdefault(key, empty)[row["way"]] = row[column]
    return list(found.values())


CARD_ROWS = [
    {
        "card": card.name, "TFLOP/s 16 bits": card.half, "TF32": card.tf32, "float32": card.float32,
        "TB/s": card.memory, "cache MB": card.cache, "part reached by convolutions": card.reached,
        "part reached by attention": card.attention,
    }
    for card in CARDS.values()
]  # fmt: skip


def published() -> list[Row]:
    """Each published time beside the calculated one; `off` is the calculated one's distance in per cent."""
    rows = []
    for one in PUBLISHED:
        seconds = cost(count(one.case, one.way).account.work, CARDS[one.card]).total
        what = f"{one.case.model} {one.case.direction} {one.case.size} {one.case.dtype}"
        rows.append(
            {
                "card": one.card,
                "what": what,
                "way": one.way,
                "published ms": round(1e3 * one.seconds, 1),
                "calculated ms": round(1e3 * seconds, 1),
                "off %": round(100 * (seconds / one.seconds - 1)),
                "source": one.source,
            }
        )
    return rows


def row_of(case: Case, counted: Counted) -> Row:
    """What a way launches, and the calculated milliseconds on each card."""
    kernels = counted.account.kernels
    row: Row = {
        "model": case.model,
        "size": case.size,
        "way": counted.way,
        "launches": len(kernels),
        "layouts": sum(kernel.kind.endswith("layout") for kernel in kernels),
        "waits": counted.account.waits,
        "TFLOP": round(sum(kernel.flops for kernel in kernels) / 1e12, 2),
        "GB moved": round(sum(kernel.read + kernel.written for kernel in kernels) / 1e9, 1),
        "peak MB": round(counted.peak_bytes / 1e6),
    }
    for card in CARDS.values():
        row[f"{card.name} ms"] = round(1e3 * cost(counted.account.work, card).total, 1)
    return row


def operators_of(case: Case, counted: Counted) -> list[Row]:
    """What each operator launches, and the calculated milliseconds of its kernels on each card."""
    groups = defaultdict(list)
    for kernel in counted.account.kernels:
        groups[kernel.name].append(kernel)
    rows = []
    for name, kernels in groups.items():
        row: Row = {"model": case.model, "size": case.size, "way": counted.way, "operator": name}
        row |= {"launches": len(kernels), "GFLOP": round(sum(kernel.flops for kernel in kernels) / 1e9)}
        row |= {"read MB": round(sum(kernel.read for kernel in kernels) / 1e6)}
        row |= {"written MB": round(sum(kernel.written for kernel in kernels) / 1e6)}
        for card in CARDS.values():
            row[f"{card.name} ms"] = round(1e3 * sum(device_seconds(kernel, card) for kernel in kernels), 2)
        rows.append(row)
    return sorted(rows, key=lambda row: -row["H200 ms"])


if __name__ == "__main__":
    run(main)
