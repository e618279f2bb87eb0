"""Runs a local network block by block: exact, in memory that is bounded in height or in time.

A block is some rows of some frames. Each stage takes blocks and gives blocks as soon as it can: a convolution keeps the
last rows that it has read until the rows below them come, and the last frames until the next frames come. So no map
exists as a whole, apart from what attention reads. All that is kept belongs to a run.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final

import torch
from torch.nn import functional

from remote_vae.core.account import filter_on
from remote_vae.core.block import Block, Keep, Moment, Past, Run, Start, Streamed
from remote_vae.core.filters import arithmetic
from remote_vae.core.local import (
    Attention,
    DoubleFrames,
    Each,
    FrameNorm,
    HalveFrames,
    Layer,
    Near,
    Plus,
    Residual,
    Size,
    Stage,
    Sums,
    ThreeFrames,
    after,
)
from remote_vae.core.stream_layer import Convolved, Filter
from remote_vae.core.stream_whole import Attended, NormedFrames, popped

FEW: Final = 4  # a block is this many times as large as the rows of it that are copied


class Chain:
    """Stages one after another."""

    def __init__(self, stages: tuple[Stage, ...], size: Size, run: Run) -> None:
        self._stages: list[Streamed] = []
        for stage in stages:
            self._stages.append(_streamed(stage, size, run))
            size = stage.after(size)

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        for stage in self._stages:
            source = stage.through(source, moment)
        return source


def _streamed(stage: Stage, size: Size, run: Run) -> Streamed:
    found: Streamed
    match stage:
        case Layer():
            found = Convolved(stage, size, run)
        case DoubleFrames():
            found = _DoubleFrames(stage, size, run)
        case HalveFrames():
            found = _HalveFrames(stage)
        case ThreeFrames():
            found = _ThreeFrames()
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
        case Residual():
            found = _Residual(stage, size, run)
        case Attention():
            found = Attended(stage)
    return found


class _DoubleFrames:
    def __init__(self, stage: DoubleFrames, size: Size, run: Run) -> None:
        self._layer, self._size, self._run = stage.layer, size, run
        self._most = run.rows(size, stage.layer.channels, size.frames)
        self._past, self._starts = Past(), Start()

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        past, keep = self._past.begin(moment)
        size, run = self._size, self._run
        filter_ = filter_on(self._layer, size.height, size.width, run.device, run.workers, lean=run.lean)
        for piece in self._run.pieces(source, self._most):
            stays = int(self._starts(moment))
            if len(piece.rows) == stays:
                yield piece
                continue
            before = past.popleft() if past else None
            given = [Block(self._doubled(piece.rows, stays, before, filter_, keep), piece.last)]
            del piece, before
            yield given.pop()

    def _doubled(
        self, rows: torch.Tensor, stays: int, past: torch.Tensor | None, filter_: Filter, keep: Keep
    ) -> torch.Tensor:
        window = rows[stays:] if past is None else torch.cat([past, rows])
        lead = 0 if past is None else len(past)
        keep(window[1 - self._layer.taps :])
        found = filter_(window, rows.shape[2], rows.shape[3], lead)
        del window
        shape = (stays + 2 * len(found), *rows.shape[1:])
        doubled = torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=torch.channels_last)
        doubled[:stays] = rows[:stays]
        doubled[stays::2], doubled[stays + 1 :: 2] = found.chunk(2, 1)
        return doubled


class _Pairs:
    """Makes one frame of each pair of frames and the frame before it, and one of the first frame."""

    def __init__(self) -> None:
        self._past, self._starts = Past(), Start()

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        past, keep = self._past.begin(moment)
        for block in source:
            stays = int(self._starts(moment))
            before = past.popleft() if past else None
            given = [Block(self._made(block.rows, stays, before, keep), block.last)]
            del block, before
            yield given.pop()

    def _made(self, rows: torch.Tensor, stays: int, past: torch.Tensor | None, keep: Keep) -> torch.Tensor:
        keep(rows[-1:])
        window = rows if past is None else torch.cat([past, rows])
        found = [self._first(rows[:1])] if stays else []
        if len(window) > 1:
            found.append(self._of([window[tap : len(window) - 2 + tap : 2] for tap in range(3)]))
        return torch.cat(found)

    def _first(self, frame: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _of(self, taps: list[torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError


class _HalveFrames(_Pairs):
    def __init__(self, stage: HalveFrames) -> None:
        super().__init__()
        self._weight, self._bias = stage.weight, stage.bias

    def _first(self, frame: torch.Tensor) -> torch.Tensor:
        return frame

    def _of(self, taps: list[torch.Tensor]) -> torch.Tensor:
        dtype = arithmetic(taps[0].dtype, taps[0].device)
        bias = None if self._bias is None else self._bias.to(dtype)
        given = torch.cat(taps, 1).permute(0, 2, 3, 1).to(dtype)
        weight = self._weight.squeeze((3, 4)).transpose(1, 2).flatten(1).to(dtype)
        return functional.linear(given, weight, bias).permute(0, 3, 1, 2).to(taps[0].dtype)


class _ThreeFrames(_Pairs):
    def _first(self, frame: torch.Tensor) -> torch.Tensor:
        return self._of([frame] * 3)

    def _of(self, taps: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(taps, 2).flatten(1, 2)


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
    """Keeps what the shortcut gives until the main branch, which reads ahead, has come to the same rows."""

    def __init__(self, stage: Residual, size: Size, run: Run) -> None:
        self._main, self._shortcut = Chain(stage.main, size, run), Chain(stage.shortcut, size, run)

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        waiting: deque[torch.Tensor] = deque()

        def both() -> Iterator[Block]:
            for block in source:
                waiting.extend(found.rows for found in self._shortcut.through(iter((block,)), moment))
                given = [block]
                del block
                yield given.pop()

        for block in self._main.through(both(), moment):
            done = 0
            while done < block.rows.shape[2]:
                part = waiting.popleft()
                count = min(part.shape[2], block.rows.shape[2] - done)
                if count < part.shape[2]:
                    waiting.appendleft(_apart(part[:, :, count:]))
                block.rows[:, :, done : done + count] += part[:, :, :count]
                done += count
                del part
            given = [block]
            del block
            yield given.pop()


def _apart(rows: torch.Tensor) -> torch.Tensor:
    """Rows that wait; a copy if they are few, because they would keep all of a large block alive."""
    return rows.clone() if rows.untyped_storage().nbytes() >= FEW * rows.nbytes else rows
