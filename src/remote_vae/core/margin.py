"""What a filter wants around a window of rows."""

from typing import Final, NamedTuple


class Margin(NamedTuple):
    """How many zero columns a filter wants beside a window, and how many zero rows below it."""

    left: int = 0
    right: int = 0
    below: int = 0


NO_MARGIN: Final = Margin()
