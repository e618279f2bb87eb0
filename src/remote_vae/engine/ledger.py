"""The memory that running jobs have claimed, so that two replicas of a device never both plan with all that is free."""

import zlib
from typing import Final

from remote_vae.engine.shared_memory import Words

FIELDS: Final = 2  # words for a replica: the device that it works on, 0 while it rests; the bytes it may still take


class Ledger:
    """The server's side: one entry for each replica of all models. Shared memory is taken at the first use."""

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._words: Words | None = None

    @property
    def name(self) -> str:
        if self._words is None:
            self._words = Words(FIELDS * self._entries)
        return self._words.name

    def clear(self, entry: int) -> None:
        """For a replica after its process has ended."""
        if self._words is not None:
            self._words[FIELDS * entry] = 0

    def free(self) -> None:
        words, self._words = self._words, None
        if words is not None:
            words.free()


class Entry:
    """The replica's side: it writes its own entry, and reads those of the other replicas on its device."""

    def __init__(self, name: str, entry: int, *, device: str) -> None:
        self._words, self._at = Words(0, name=name), FIELDS * entry
        self._device = zlib.crc32(device.encode()) + 1

    def begin(self) -> None:
        self._words[self._at + 1] = 0
        self._words[self._at] = self._device

    def end(self) -> None:
        self._words[self._at] = 0

    def claim(self, nbytes: int) -> None:
        """The bytes that this replica's job may still take."""
        self._words[self._at + 1] = nbytes

    def others(self) -> list[int]:
        """What each other replica that works on the same device may still take."""
        entries = range(0, len(self._words) - 1, FIELDS)
        return [self._words[at + 1] for at in entries if at != self._at and self._words[at] == self._device]
