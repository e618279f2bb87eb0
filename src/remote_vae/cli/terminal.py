"""What people see: talk goes to stderr, results go to stdout."""

import contextlib
import math
import sys
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

PIPE_COLUMNS = 200

console = Console(stderr=True, highlight=False, soft_wrap=True)


def show_table(table: Table) -> None:
    """On stdout; not folded to a terminal's width when it goes elsewhere."""
    Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(table)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner with the seconds that have passed; gone when the work is done, and not there without a terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(escape(text), total=None)
        yield


def psnr_db(a: np.ndarray, b: np.ndarray, *, peak: float) -> float:
    """Peak signal-to-noise ratio in dB; infinity for equal arrays."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def human_bytes(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
