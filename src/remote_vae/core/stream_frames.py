"""Stages of a local network at work that change frames, which later frames may depend on."""

from collections.abc import Iterator

import torch
from torch.nn import functional

from remote_vae.core.account import filter_on
from remote_vae.core.block import Block, Keep, Moment, Past, Run, Start, Streamed
from remote_vae.core.filters import arithmetic
from remote_vae.core.local_frames import DoubleFrames, FrameStage, HalveFrames, LeaveOut, Size, ThreeFrames, WithBefore
from remote_vae.core.stream_layer import Filter, empty


class DoubledFrames:
    def __init__(self, stage: DoubleFrames, size: Size, run: Run) -> None:
        self._layer, self._size, self._run = stage.layer, size, run
        self._most = run.rows(size, stage.layer.channels, size.frames)
        self._past, self._starts = Past(), Start()

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        past, keep = self._past.begin(moment)
        filter_ = filter_on(self._layer, self._size, self._run)
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
        doubled = empty((stays + 2 * len(found), *rows.shape[1:]), rows)
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


class HalvedFrames(_Pairs):
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


class ThreeOfFrames(_Pairs):
    def _first(self, frame: torch.Tensor) -> torch.Tensor:
        return self._of([frame] * 3)

    def _of(self, taps: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(taps, 2).flatten(1, 2)


class BesideBefore:
    def __init__(self, size: Size, run: Run) -> None:
        self._run, self._most = run, run.rows(size, 2 * size.channels, size.frames)
        self._past = Past()

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        past, keep = self._past.begin(moment)
        for piece in self._run.pieces(source, self._most):
            keep(piece.rows[-1:])
            given = [Block(self._both(piece.rows, past.popleft() if past else None), piece.last)]
            del piece
            yield given.pop()

    def _both(self, rows: torch.Tensor, past: torch.Tensor | None) -> torch.Tensor:
        frames, channels, *sides = rows.shape
        both = empty((frames, 2 * channels, *sides), rows)
        both[:, :channels] = rows
        both[1:, channels:] = rows[:-1]
        both[:1, channels:] = 0 if past is None else past
        return both


class LeftOut:
    def __init__(self, stage: LeaveOut) -> None:
        self._stage, self._next = stage, 0

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        begin = self._next
        for block in source:
            self._next = begin + len(block.rows)
            kept = [each for each in range(len(block.rows)) if self._keeps(begin + each)]
            given = [block if len(kept) == len(block.rows) else Block(block.rows[kept], block.last)]
            del block
            yield given.pop()

    def _keeps(self, number: int) -> bool:
        return number % self._stage.period >= self._stage.first


def of_frames(stage: FrameStage, size: Size, run: Run) -> Streamed:
    match stage:
        case DoubleFrames():
            return DoubledFrames(stage, size, run)
        case HalveFrames():
            return HalvedFrames(stage)
        case ThreeFrames():
            return ThreeOfFrames()
        case WithBefore():
            return BesideBefore(size, run)
        case LeaveOut():
            return LeftOut(stage)
