"""What the C library does with freed memory, where that is glibc.

By its own rule it hands a large block back to the system at once, which then has to fill the next one with zeros, page
by page, for every reply and every map of some megabytes. So a busy process keeps what it has freed, and gives it back
when it rests.
"""

import ctypes
import time
from typing import Final

LARGEST_KEPT: Final = 32 << 20  # the largest that glibc allows; larger blocks go straight back
MOST_KEPT: Final = 1 << 29  # free memory at the end of the heap above which it goes back at once
TRIM_SECONDS: Final = 1.0

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed() -> None:
    """From now on."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(_TRIM_THRESHOLD, MOST_KEPT)


def give_back() -> None:
    """All that is kept."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


class Trim:
    """Over a long job gives back every second what is kept: between the strips that stay, those that go leave gaps
    which the next layer's do not fit into, and in the end there would be half as much again in gaps.
    """

    def __init__(self) -> None:
        self._due = time.monotonic() + TRIM_SECONDS

    def when_due(self) -> None:
        if time.monotonic() >= self._due:
            give_back()
            self._due = time.monotonic() + TRIM_SECONDS
