"""What people see: talk goes to stderr, results go to stdout."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

PIPE_COLUMNS = 200

console = Console(stderr=True, highlight=False, soft_wrap=True)


def show_table(table: Table) -> None:
    """On stdout; not folded to a terminal's width when it goes elsewhere."""
    Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(table)


def print_json(value: object) -> None:
    """On stdout."""
    print(json.dumps(value, indent=2))


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner with the seconds that have passed; gone when the work is done, and not there without a terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(escape(text), total=None)
        yield


@contextlib.contextmanager
def bar(text: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar with the number of items a second and the time that is left; not there without a terminal.

    The function that it gives is called for each item.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=60) as progress:
        task = progress.add_task(escape(text), total=total)
        yield lambda: progress.advance(task)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


def human_bytes(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
