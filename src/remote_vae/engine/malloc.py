"""How glibc treats freed memory; other C libraries are left as they are.

By default glibc returns a large freed block to the system at once. The system must then fill the next one with zeros,
page by page, which costs time for every reply and every feature map of some megabytes. So a busy process keeps its
freed memory, and returns it when it rests.
"""

import ctypes
import time
from typing import Final

LARGEST_KEPT: Final = 32 << 20  # the largest that glibc allows; larger blocks go straight back
MOST_KEPT: Final = 1 << 29  # free memory at the end of the heap above which it goes back at once
TRIM_SECONDS: Final = 1.0

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def keep_freed() -> None:
    """Makes this process keep its freed memory until `give_back` is called."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(_TRIM_THRESHOLD, MOST_KEPT)


def give_back() -> None:
    """Returns all freed memory to the system."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


class Trim:
    """Returns freed memory once a second during a long job.

    Freed strips leave gaps between those that stay. The strips of the next layer do not fit into these gaps, which in
    the end would take half as much memory as the strips themselves.
    """

    def __init__(self) -> None:
        self._due = time.monotonic() + TRIM_SECONDS

    def when_due(self) -> None:
        if time.monotonic() >= self._due:
            give_back()
            self._due = time.monotonic() + TRIM_SECONDS
