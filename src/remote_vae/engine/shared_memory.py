"""Shared memory between the server and a replica: tensors on the way in and out, and a word that says "stop"."""

import os
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Final

from remote_vae.errors import Overloaded

SMALLEST_SEGMENT: Final = 1 << 20
KEPT_BYTES: Final = 16 << 20  # of a segment that nobody has used for a while
SHARED: Final = Path("/dev/shm")  # where Linux has it
SERIAL_BYTES: Final = 8


def opened(segment: SharedMemory) -> memoryview:
    """The bytes of a segment that has not been closed."""
    if segment.buf is None:
        raise ValueError("the shared memory is closed")
    return segment.buf


class Segments:
    """The parent's side, which owns the segments: one on the way in, one on the way out, kept for the next job."""

    def __init__(self) -> None:
        self._segments: dict[str, SharedMemory] = {}

    @property
    def names(self) -> list[str]:
        return [segment.name for segment in self._segments.values()]

    def fill(self, block: memoryview) -> str:
        """Copies a tensor in; gives the segment's name."""
        segment = self._segment("in", block.nbytes)
        opened(segment)[: block.nbytes] = block
        return segment.name

    def room(self, nbytes: int) -> str:
        """The name of a segment that holds this many bytes, for the way out."""
        return self._segment("out", nbytes).name

    def read(self, nbytes: int) -> bytes:
        return bytes(opened(self._segments["out"])[:nbytes])

    def shrink(self) -> None:
        """Gives back what only a large job needed."""
        for role in [role for role, segment in self._segments.items() if segment.size > KEPT_BYTES]:
            _free(self._segments.pop(role))

    def free(self) -> None:
        while self._segments:
            _free(self._segments.popitem()[1])

    def _segment(self, role: str, nbytes: int) -> SharedMemory:
        """Large enough; grows by doubling."""
        known = self._segments.get(role)
        if known is not None and known.size >= nbytes:
            return known
        size = max(SMALLEST_SEGMENT, nbytes, 2 * known.size if known else 0)
        if known is not None:
            _free(self._segments.pop(role))
        fresh = self._segments[role] = _create(size)
        return fresh


def _create(size: int) -> SharedMemory:
    """A segment whose memory is there: otherwise writing to it may end the process, in a container with little of it.

    *Raises* Overloaded.
    """
    try:
        segment = SharedMemory(create=True, size=size)
    except OSError as exc:
        raise _full(size) from exc
    place = SHARED / segment.name
    if place.exists():
        try:
            with place.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as exc:
            _free(segment)
            raise _full(size) from exc
    return segment


def _full(size: int) -> Overloaded:
    return Overloaded(f"there are not {size} bytes of shared memory; try again later, or give the server more of it")


def _free(segment: SharedMemory) -> None:
    segment.close()
    segment.unlink()


class Views:
    """The child's side: segments by name; those that it had open for the same role before are closed."""

    def __init__(self) -> None:
        self._open: dict[str, SharedMemory] = {}

    def view(self, role: str, name: str) -> memoryview:
        known = self._open.get(role)
        if known is None or known.name != name:
            if known is not None:
                known.close()
            known = self._open[role] = SharedMemory(name)
        return opened(known)

    def shrink(self) -> None:
        """Lets go of what the parent may want to give back."""
        for role in [role for role, segment in self._open.items() if segment.size > KEPT_BYTES]:
            self._open.pop(role).close()


class StopWord:
    """Holds the serial number of the job that need not go on; jobs are numbered from 1.

    It is never cleared, so a word that comes too late stops nothing else.
    """

    def __init__(self, name: str | None = None) -> None:
        self._segment = SharedMemory(name) if name else SharedMemory(create=True, size=SERIAL_BYTES)
        self._freed = False

    @property
    def name(self) -> str:
        return self._segment.name

    def say(self, serial: int) -> None:
        opened(self._segment)[:SERIAL_BYTES] = serial.to_bytes(SERIAL_BYTES, "little")

    def said(self) -> int:
        return int.from_bytes(opened(self._segment)[:SERIAL_BYTES], "little")

    def free(self) -> None:
        if not self._freed:
            _free(self._segment)
        self._freed = True
