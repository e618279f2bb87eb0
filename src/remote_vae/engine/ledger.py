"""The memory that running jobs have claimed, so that two replicas of a device never both plan with all that is free."""

import zlib
from typing import Final

from remote_vae.engine.shared_memory import Words

# Words for a replica: its device, 0 before it is loaded; whether it works; the bytes that it may still take.
FIELDS: Final = 3


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
            self._words[FIELDS * entry] = self._words[FIELDS * entry + 1] = 0

    def free(self) -> None:
        words, self._words = self._words, None
        if words is not None:
            words.free()


class Entry:
    """The replica's side: it writes its own entry, and reads those of the other replicas on its device."""

    def __init__(self, name: str, entry: int, *, device: str) -> None:
        self._words, self._at = Words(0, name=name), FIELDS * entry
        self._words[self._at] = self._device = zlib.crc32(device.encode()) + 1

    def begin(self) -> None:
        self._words[self._at + 2] = 0
        self._words[self._at + 1] = 1

    def end(self) -> None:
        self._words[self._at + 1] = 0

    def claim(self, nbytes: int) -> None:
        """The bytes that this replica's job may still take."""
        self._words[self._at + 2] = nbytes

    def others(self) -> list[int]:
        """What each other replica that works on the same device may still take."""
        return [self._words[at + 2] for at in self._neighbours() if self._words[at + 1]]

    @property
    def has_neighbours(self) -> bool:
        """Whether another replica has its model on the same device."""
        return any(self._neighbours())

    def _neighbours(self) -> list[int]:
        entries = range(0, len(self._words) - FIELDS + 1, FIELDS)
        return [at for at in entries if at != self._at and self._words[at] == self._device]
