"""What a benchmark shows, and what it has written before."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def show(rows: Sequence[Mapping[str, object]]) -> None:
    """A line for each row, under the names of the first one's fields."""
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


def rows_in(file: Path | None) -> list[dict[str, Any]]:
    """The rows that an earlier run has written; none if there is no such file."""
    if file is None or not file.exists():
        return []
    found: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return found
