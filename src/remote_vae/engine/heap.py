"""What the C library does with freed memory, where that is glibc.

By its own rule it hands a large block back to the system at once, which then has to fill the next one with zeros, page
by page, for every reply and every map of some megabytes. So a busy process keeps what it has freed, and gives it back
when it rests.
"""

import ctypes
from typing import Final

LARGEST_KEPT: Final = 32 << 20  # the largest that glibc allows; larger blocks go straight back
MOST_KEPT: Final = 1 << 29  # free memory at the end of the heap above which it goes back at once

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
