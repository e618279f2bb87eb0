"""Shared memory between the server and a replica: tensors on the way in and out, and signals during a job."""

import contextlib
import os
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Final

import numpy as np

from remote_vae.errors import Overloaded

SMALLEST_SEGMENT: Final = 1 << 20
KEPT_BYTES: Final = 16 << 20  # a larger segment is freed when it has not been used for a while
SHARED: Final = Path("/dev/shm")  # where Linux has it
WORD: Final = 8  # bytes of a number in shared memory


def opened(segment: SharedMemory) -> memoryview:
    """The bytes of a segment that has not been closed."""
    if segment.buf is None:
        raise ValueError("the shared memory is closed")
    return segment.buf


class Segments:
    """The server's side, which owns the segments: one for input and one for output, both kept for the next job.

    Every copy is numpy's, which releases the interpreter's lock, so that a thread can copy while others work.
    """

    def __init__(self) -> None:
        self._segments: dict[str, SharedMemory] = {}

    @property
    def names(self) -> list[str]:
        return [segment.name for segment in self._segments.values()]

    def prepare(self, tensor: memoryview, output_bytes: int) -> tuple[str, str]:
        """Copies the input tensor in and makes room for the output; returns the names of both segments.

        *Raises* Overloaded if there is not enough shared memory.
        """
        source, segment = np.frombuffer(tensor, np.uint8), self._segment("in", tensor.nbytes)
        np.copyto(np.frombuffer(opened(segment), np.uint8, tensor.nbytes), source)
        return segment.name, self._segment("out", output_bytes).name

    def read(self, nbytes: int) -> memoryview:
        """A copy of the first bytes of the output."""
        found = np.empty(nbytes, np.uint8)
        np.copyto(found, np.frombuffer(opened(self._segments["out"]), np.uint8, nbytes))
        return found.data

    def shrink(self) -> None:
        """Frees the segments that only a large job needed."""
        for role in [role for role, segment in self._segments.items() if segment.size > KEPT_BYTES]:
            _free(self._segments.pop(role))

    def free(self) -> None:
        while self._segments:
            _free(self._segments.popitem()[1])

    def _segment(self, role: str, nbytes: int) -> SharedMemory:
        """A segment that is large enough; it grows by doubling."""
        known = self._segments.get(role)
        if known is not None and known.size >= nbytes:
            return known
        size = max(SMALLEST_SEGMENT, nbytes, 2 * known.size if known else 0)
        if known is not None:
            _free(self._segments.pop(role))
        fresh = self._segments[role] = _create(size)
        return fresh


def _create(size: int) -> SharedMemory:
    """A segment whose memory is allocated. Otherwise writing to it could kill the process if memory has run out.

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
    """Removes the segment; its pages live until nobody maps them, such as a thread that is still copying."""
    segment.unlink()
    with contextlib.suppress(BufferError):
        segment.close()


class Views:
    """The replica's side: opens segments by name and closes the one that had the same role before."""

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
        """Closes the segments that the server may want to free."""
        for role in [role for role, segment in self._open.items() if segment.size > KEPT_BYTES]:
            self._open.pop(role).close()


class Words:
    """Numbers in shared memory, zero at first. `name` opens those that another process has made."""

    def __init__(self, count: int, *, name: str | None = None) -> None:
        self._segment = SharedMemory(name) if name else SharedMemory(create=True, size=count * WORD)
        self._freed = False

    @property
    def name(self) -> str:
        return self._segment.name

    def __len__(self) -> int:
        return self._segment.size // WORD

    def __getitem__(self, index: int) -> int:
        return int.from_bytes(opened(self._segment)[index * WORD : (index + 1) * WORD], "little")

    def __setitem__(self, index: int, value: int) -> None:
        opened(self._segment)[index * WORD : (index + 1) * WORD] = value.to_bytes(WORD, "little")

    def free(self) -> None:
        if not self._freed:
            _free(self._segment)
        self._freed = True


class Signals:
    """Signals between the server and a replica during a job.

    The server writes the serial number of a job that need not go on. It is never cleared: jobs are numbered from 1, so
    a word that comes too late stops no other job. The replica counts its heartbeats, and the steps of the job.
    """

    def __init__(self, name: str | None = None) -> None:
        self._words = Words(4, name=name)

    @property
    def name(self) -> str:
        return self._words.name

    @property
    def beats(self) -> int:
        return self._words[1]

    def beat(self) -> None:
        self._words[1] += 1

    @property
    def steps(self) -> tuple[int, int]:
        """How many steps of the job are done, and how many there are; 0 before that is known."""
        return self._words[2], self._words[3]

    def tell(self, done: int, total: int) -> None:
        if total != self._words[3]:
            self._words[2] = 0  # so that a reader between the two words sees too little and not too much
            self._words[3] = total
        self._words[2] = done

    def stop(self, serial: int) -> None:
        self._words[0] = serial

    def stopped(self, serial: int) -> bool:
        return self._words[0] == serial

    def free(self) -> None:
        self._words.free()
