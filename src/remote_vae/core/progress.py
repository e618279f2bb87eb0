"""How far a run is, counted in steps of a known number."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

Tell = Callable[[int, int], None]
"""Takes the steps that are done and the number of all steps."""
MOST_KEPT: Final = 64


class Progress:
    """Counts checkpoints if a run of the same kind has been counted before, otherwise the finished rows of the output.

    Checkpoints are the better measure, because some plans finish every row in the last layer. Their number is only
    known after a run.
    """

    def __init__(self, tell: Tell = lambda done, total: None) -> None:
        self._tell = tell
        self._known: OrderedDict[Hashable, int] = OrderedDict()
        self._kind: Hashable = None
        self._checkpoints = self._rows = self._all = 0
        self._by_rows = True

    def begin(self, kind: Hashable, rows: int) -> None:
        """A run of this kind begins, whose output has so many rows."""
        self._kind, self._checkpoints, self._rows = kind, 0, 0
        self._by_rows = kind not in self._known
        self._all = rows if self._by_rows else self._known[kind]
        self._tell(0, self._all)

    def checkpoint(self) -> None:
        self._checkpoints += 1
        if not self._by_rows:
            self._tell(min(self._checkpoints, self._all), self._all)

    def finish(self, rows: int) -> None:
        """So many more rows of the output are finished."""
        self._rows += rows
        if self._by_rows:
            self._tell(min(self._rows, self._all), self._all)

    def end(self) -> None:
        """The run is over, and the number of its checkpoints is kept for the next run of its kind."""
        self._tell(self._all, self._all)
        if self._checkpoints:
            self._known[self._kind] = self._checkpoints
            self._known.move_to_end(self._kind)
            if len(self._known) > MOST_KEPT:
                self._known.popitem(last=False)
