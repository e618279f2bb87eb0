"""What people see while they wait."""

import contextlib
import math
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

console = Console(stderr=True, highlight=False)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner with the seconds that have passed; gone when the work is done."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(text, total=None)
        yield


def psnr_db(a: np.ndarray, b: np.ndarray, *, peak: float) -> float:
    """Peak signal-to-noise ratio in dB; infinity for equal arrays."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def human_bytes(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
