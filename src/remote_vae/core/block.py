"""Blocks: rows of some frames on their way through the stages of a local network, and what the stages keep of them."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch

from remote_vae.core.local_frames import Size
from remote_vae.core.rows import windows
from remote_vae.core.strip_threads import workers
from remote_vae.core.sweep import share_of

FEW: Final = 8  # a piece is at least this many times as large as the rows that are added to it
LARGE: Final = 4  # a block is this many times as large as the rows of it that are copied
Keep = Callable[[torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of some frames; `last` if they are the last rows of these frames. *Shapes*: [f,C,rows,W], channels last.

    The first `lead` frames were given before, and are only read by the frames after them.
    """

    rows: torch.Tensor
    last: bool
    lead: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """Frames that go through the stages together; `last` if they are the last ones of the clip.

    In a prediction only the sizes of tensors matter, so nothing is written into them.
    *Shapes*: `given`, [f,C,H,W], are these frames as they come into the first stage.
    """

    last: bool
    given: torch.Tensor
    predicts: bool = False

    def copied(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.empty(rows.shape, dtype=rows.dtype, device=rows.device) if self.predicts else rows.clone()


@dataclass(frozen=True, slots=True)
class Run:
    """What the stages of a run share. *Units*: `block_bytes` are of what a convolution reads or gives at a time.

    A run that `predicts` counts all `workers`, but has one thread. `one_frame` says that there is no other frame to
    read. A `lean` run holds no kernels but those of the model.
    """

    device: torch.device
    item_bytes: int
    block_bytes: int
    workers: int = 1
    one_frame: bool = False
    lean: bool = False
    predicts: bool = False
    checkpoint: Callable[[], None] = field(default=lambda: None)

    def each(self, rows: int, work: Callable[[int, int], None], step: int = 1) -> None:
        """Calls `work` for every part of some rows, one part for each core, of a multiple of `step` rows."""
        threads = 1 if self.predicts else self.workers
        spans = windows(rows, share_of(rows, threads, step))
        workers(threads).each(spans, lambda span: work(*span), lambda span, nothing: None)

    def pieces(self, source: Iterator[Block], most: int) -> Iterator[Block]:
        """Blocks of about so many rows, of which nothing is held here while they are worked on."""
        for block in source:
            count, last, lead = block.rows.shape[2], block.last, block.lead
            waiting = deque(torch.split(block.rows, _shares(count, most), 2))
            del block
            while waiting:
                self.checkpoint()
                count -= waiting[0].shape[2]
                yield Block(waiting.popleft(), last and count == 0, lead)

    def rows(self, size: Size, channels: int, frames: int, whole: int = 0) -> int:
        """How many rows of a map a stage takes at a time: a power of two, so that blocks are shared out without a rest.

        A map of at most `whole` bytes is taken as a whole.
        """
        row = frames * channels * size.width * self.item_bytes
        found = size.height if row * size.height <= whole else self.block_bytes // row
        return size.height if found >= size.height else 1 << max(1, found).bit_length() - 1


def _shares(rows: int, most: int) -> list[int]:
    """Rows of the pieces of a block. A few rows that are left over go with the piece before them."""
    count = max(1, (rows + most - 1 - most // FEW) // most)
    return [most] * (count - 1) + [rows - most * (count - 1)]


class Streamed(Protocol):
    """A stage at work."""

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        """Takes the rows of the next frames from top to bottom, and gives rows from top to bottom."""
        ...


class Past:
    """The last frames of the blocks of a run of frames, which the next run of frames reads block by block.

    Every run of frames comes in the same blocks.
    """

    def __init__(self) -> None:
        self._given: deque[torch.Tensor] = deque()

    def begin(self, moment: Moment) -> tuple[deque[torch.Tensor], Keep]:
        """What was kept, and what to call with what is to be kept."""
        before, self._given = self._given, deque()
        keep = self._given.append
        return before, (lambda frames: None) if moment.last else (lambda frames: keep(moment.copied(frames)))


class Start:
    """Tells the first frames that come to a stage from later ones."""

    def __init__(self) -> None:
        self._first: Moment | None = None

    def __call__(self, moment: Moment) -> bool:
        self._first = self._first or moment
        return self._first is moment


def apart(rows: torch.Tensor) -> torch.Tensor:
    """Rows that wait; a copy if they are few, because they would keep all of a large block alive."""
    return rows.clone() if rows.untyped_storage().nbytes() >= LARGE * rows.nbytes else rows
