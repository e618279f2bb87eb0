"""Runs a local network block by block: exact, in memory that is bounded in height or in time.

A block is some rows of some frames. Each stage takes blocks and gives blocks as soon as it can: a convolution keeps the
last rows that it has read until the rows below them come, and the last frames until the next frames come. So no map
exists as a whole, apart from what attention reads. All that is kept belongs to a run.
"""

from collections import deque
from collections.abc import Iterator
from itertools import zip_longest

import torch

from remote_vae.core.block import Block, Moment, Run, Start, Streamed, apart
from remote_vae.core.local import Attention, Each, FrameNorm, Layer, Near, Plus, Residual, Scaled, Stage, Sums, after
from remote_vae.core.local_frames import Size
from remote_vae.core.stages import Upsample
from remote_vae.core.stream_frames import of_frames
from remote_vae.core.stream_layer import KERNELS, Convolved
from remote_vae.core.stream_scaled import ScaledRows
from remote_vae.core.stream_whole import Attended, NormedFrames, popped


class Chain:
    """Stages one after another."""

    def __init__(self, stages: tuple[Stage, ...], size: Size, run: Run, *, given: bool = False) -> None:
        self._stages: list[Streamed] = []
        for stage, following in zip_longest(stages, stages[1:]):
            again = _made_again(stage, following, size)
            self._stages.append(_streamed(stage, size, run, again, given=given))
            size, given = stage.after(size), again > 0
        self.kernel_bytes = sum(stage.kernel_bytes for stage in self._stages if isinstance(stage, Convolved))

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        for stage in self._stages:
            source = stage.through(source, moment)
        return source


def _made_again(stage: Stage, following: Stage | None, size: Size) -> int:
    """How many frames before those that it is given an upsampling makes again for the residual block that follows.

    The map before the upsampling is smaller, so less is kept for later frames.
    """
    if not isinstance(stage, Layer) or not isinstance(stage.layer, Upsample) or size.frames == 1:
        return 0
    if not isinstance(following, Residual) or following.shortcut or size.channels >= 4 * stage.layer.channels:
        return 0
    reader = following.main[0]
    if stage.frames.reach or not isinstance(reader, Layer) or reader.frames.after or reader.frames.repeats:
        return 0
    return reader.frames.before


def _streamed(stage: Stage, size: Size, run: Run, again: int = 0, *, given: bool = False) -> Streamed:
    """A stage at work; it makes some frames `again`, or is `given` those that it reads."""
    found: Streamed
    match stage:
        case Layer():
            found = Convolved(stage, size, run, again, given=given)
        case Plus():
            found = _Plus(stage)
        case Each():
            found = _Each(stage)
        case Near():
            found = _Near(stage, size, run)
        case Sums():
            found = _Sums(stage, size, run)
        case FrameNorm():
            found = NormedFrames(stage, size, run)
        case Scaled():
            found = ScaledRows(stage, size)
        case Residual():
            found = _Residual(stage, size, run, given=given)
        case Attention():
            found = Attended(stage, run)
        case _:
            found = of_frames(stage, size, run)
    return found


class _Plus:
    def __init__(self, stage: Plus) -> None:
        self._values, self._weight = stage.values, stage.weight

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        row = 0
        for block in source:
            stop = row + block.rows.shape[2]
            block.rows.addcmul_(self._values[row:stop], self._weight)
            row = stop
            given = [block]
            del block
            yield given.pop()


class _Each:
    """Rows that do not yet make a row of the output wait for the next block."""

    def __init__(self, stage: Each) -> None:
        self._function, self._together = stage.function, stage.sides.denominator
        self._waiting: torch.Tensor | None = None
        self._starts = Start()

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        for block in source:
            rows, last = block.rows, block.last
            del block
            if self._waiting is not None:
                rows, self._waiting = torch.cat([self._waiting, rows], 2), None
            left = rows.shape[2] % self._together
            if left:
                rows, self._waiting = rows[:, :, :-left], rows[:, :, -left:].clone()
            given = [rows]
            del rows
            if given[0].shape[2]:
                yield Block(self._function(given.pop(), self._starts(moment)), last)


class _Near:
    def __init__(self, stage: Near, size: Size, run: Run) -> None:
        self._stage, self._run, self._together = stage, run, stage.sides.denominator
        most = run.rows(size, max(size.channels, stage.channels), size.frames)
        self._most = -(-most // self._together) * self._together

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        halo, above = self._stage.halo, 0
        held: torch.Tensor | None = None
        for piece in self._run.pieces(source, self._most):
            window, last = piece.rows if held is None else torch.cat([held, piece.rows], 2), piece.last
            del piece
            rows = window.shape[2] - above - (0 if last else halo)
            rows -= rows % self._together
            if rows < 1:
                held = window
                continue
            below = min(halo, window.shape[2] - above - rows)
            given = [window[:, :, : above + rows + below]]
            top, above = halo - above, min(halo, above + rows)
            held = None if last else window[:, :, given[0].shape[2] - below - above :].clone()
            del window
            yield Block(self._stage.function(given.pop(), top, halo - below), last)


class _Sums:
    """Waits for all rows, and keeps them."""

    def __init__(self, stage: Sums, size: Size, run: Run) -> None:
        self._stage, self._size, self._run = stage, size, run
        widest = max(found.channels for found in (size, after(stage.main, size)))
        self._most = run.rows(size, widest, size.frames)

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        held = deque(self._run.pieces(source, self._most))
        sums: torch.Tensor | None = None
        for block in self._main(iter(held), moment):
            found = self._stage.summed(block.rows)
            sums = found if sums is None else sums.add_(found)
            del block
        if sums is not None:
            for block in self._main(popped(held), moment):
                yield Block(self._stage.applied(block.rows, sums), block.last)

    def _main(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        return Chain(self._stage.main, self._size, self._run).through(source, moment)


class _Residual:
    """Keeps what the shortcut gives until the main branch, which reads ahead, has come to the same rows.

    If the main branch begins with a norm that waits for all rows, the shortcut takes them as they leave the norm. If
    the map is small beside the kernels of the main branch, all rows come first, so no other stages hold kernels then.
    """

    def __init__(self, stage: Residual, size: Size, run: Run, *, given: bool) -> None:
        first, main = stage.main[0], stage.main
        self._norm = NormedFrames(first, size, run) if isinstance(first, FrameNorm) else None
        self._main = Chain(main if self._norm is None else main[1:], size, run, given=given)
        self._shortcut = Chain(stage.shortcut, size, run)
        reach = max((part.frames.reach for part in main if isinstance(part, Layer)), default=0)
        frames = 1 if run.one_frame else size.frames + reach  # as many rows as the main branch takes at a time
        map_bytes = size.frames * size.channels * size.height * size.width * run.item_bytes
        self._waits = self._norm is None and map_bytes <= KERNELS * self._main.kernel_bytes
        self._run, self._most = run, run.rows(size, max(size.channels, stage.after(size).channels), frames)

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        waiting: deque[torch.Tensor] = deque()

        def both() -> Iterator[Block]:
            measured = source if self._norm is None else self._norm.measured(source)
            if self._waits:
                measured = popped(deque(source))
            for block in self._run.pieces(measured, self._most):
                given = Block(block.rows[block.lead :], block.last)
                waiting.extend(found.rows for found in self._shortcut.through(iter((given,)), moment))
                del given
                left = [block]
                del block
                yield left.pop()

        given = both() if self._norm is None else self._norm.applied(both(), moment)
        for block in self._main.through(given, moment):
            done = 0
            while done < block.rows.shape[2]:
                part = waiting.popleft()
                count = min(part.shape[2], block.rows.shape[2] - done)
                if count < part.shape[2]:
                    waiting.appendleft(apart(part[:, :, count:]))
                if not moment.predicts:
                    block.rows[:, :, done : done + count] += part[:, :, :count]
                done += count
                del part
            left = [block]
            del block
            yield left.pop()
