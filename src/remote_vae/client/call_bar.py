"""A line on a terminal for one call: what the server does, how much of it is done, and the seconds that are left."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from remote_vae.client.watching import CallProgress, Tell
from remote_vae.python310 import Self

if TYPE_CHECKING:
    from rich.progress import Progress

QUIET_SECONDS: Final = 1.0  # a call that is over by then needs no bar
WORDS: Final = {"sent": "waiting", "arriving": "sending", "writing": "receiving"}


class CallBar:
    """Takes the progress of a call. The line appears after a second, if there is a terminal, and goes with the end.

    The package that draws it is imported only then.
    """

    def __init__(self, text: str) -> None:
        self._text, self._from = text, time.monotonic() + QUIET_SECONDS
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, call: CallProgress) -> None:
        if self._bar is None and time.monotonic() >= self._from:
            self._bar = _started(self._text, since=self._from - QUIET_SECONDS)
        if self._bar is not None:
            share: Any = call.share
            total = None if share is None else 1.0
            self._bar.update(self._bar.task_ids[0], total=total, completed=share or 0.0, what=in_words(call))


def in_words(call: CallProgress) -> str:
    """The state of a call for people."""
    if call.state == "queued" and call.position:
        return "next in the queue" if call.position == 1 else f"number {call.position} in the queue"
    if call.state == "running" and call.seconds_left is not None:
        return f"{call.seconds_left:.0f} s left"
    return WORDS.get(call.state, call.state)


def _started(text: str, *, since: float) -> "Progress":
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    shown = console.is_terminal or console.is_jupyter
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"), TimeElapsedColumn())
    bar = Progress(SpinnerColumn(), *columns, console=console, transient=True, disable=not shown)
    bar.add_task(escape(text), total=None, what="")
    bar.tasks[0].start_time = since  # a moment on the monotonic clock, as all of its times are
    bar.start()
    return bar


@contextmanager
def telling(progress: "bool | Tell", text: str) -> Iterator[Tell | None]:
    """The function that is to be told, which is a bar's if `progress` is True; None if there is none."""
    if progress is True:
        with CallBar(text) as bar:
            yield bar
    else:
        yield progress if callable(progress) else None  # a callable object may be false
