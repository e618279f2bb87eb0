"""Runs a local network block by block: exact, in memory that is bounded in height or in time.

A block is some rows of some frames. Each stage takes blocks and gives blocks as soon as it can: a convolution keeps the
last rows that it has read until the rows below them come, and the last frames until the next frames come. So no map
exists as a whole, apart from what attention reads. All that is kept belongs to a run.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import torch
from torch.nn import functional

from remote_vae.core.account import Account, filter_on, kernel_bytes
from remote_vae.core.attention import attend, linear
from remote_vae.core.filters import Direct, Margin, Recombined, arithmetic
from remote_vae.core.local import Attention, DoubleFrames, Each, HalveFrames, Layer, Norm, Residual, Size, Stage
from remote_vae.core.rows import windows
from remote_vae.core.stages import Convolution, Downsample, Upsample
from remote_vae.core.strip_threads import workers
from remote_vae.core.sweep import ROWS

NORM_BYTES: Final = 2**20  # normalised at a time, so that values stay in the cache from one operation to the next
KERNELS: Final = 2  # a map as large as two recombined kernels: by blocks, the kernels of several layers would be held
LEAST: Final = 1e-12  # the root mean square of zeros

Keep = Callable[[torch.Tensor], None]
Filter = Direct | Recombined | Account


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of some frames; `last` if they are the last rows of these frames. *Shapes*: [f,C,rows,W], channels last."""

    rows: torch.Tensor
    last: bool

    def pieces(self, most: int) -> "deque[Block]":
        """The block in pieces of at most so many rows."""
        count = self.rows.shape[2]
        return deque(
            Block(self.rows[:, :, start : start + most], self.last and start + most >= count)
            for start in range(0, count, most)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """Frames that go through the stages together; `last` if they are the last ones of the clip."""

    last: bool


@dataclass(frozen=True, slots=True)
class Run:
    """What the stages of a run share. *Units*: `block_bytes` are of what a convolution reads or gives at a time.

    A prediction counts all `workers`, but has one thread.
    """

    device: torch.device
    item_bytes: int
    block_bytes: int
    workers: int = 1
    threads: int = 1
    checkpoint: Callable[[], None] = field(default=lambda: None)

    def each(self, rows: int, work: Callable[[int, int], None]) -> None:
        """Calls `work` for every part of some rows, one part for each core."""
        share = -(-rows // self.threads)
        spans = windows(rows, share + -share % ROWS)
        workers(self.threads).each(spans, lambda span: work(*span), lambda span, nothing: None)

    def rows(self, size: Size, channels: int, frames: int, whole: int = 0) -> int:
        """How many rows of a map a stage takes at a time: a multiple of four if possible, as convolutions prefer it.

        A map of at most `whole` bytes is taken as a whole.
        """
        row = frames * channels * size.width * self.item_bytes
        found = size.height if row * size.height <= whole else self.block_bytes // row
        return size.height if found >= size.height else max(1, found - found % 4 if found > 4 else found)


class Streamed(Protocol):
    """A stage at work."""

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        """Takes the rows of the next frames from top to bottom, and gives rows from top to bottom."""
        ...


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
    match stage:
        case Layer():
            return _Layer(stage, size, run)
        case DoubleFrames():
            return _DoubleFrames(stage, size, run)
        case HalveFrames():
            return _HalveFrames(stage)
        case Each():
            return _Each(stage)
        case Residual():
            return _Residual(stage, size, run)
        case Attention():
            return _Attention(stage)


class _Past:
    """The last frames of the blocks of a run of frames, which the next run of frames reads block by block.

    Every run of frames comes in the same blocks.
    """

    def __init__(self) -> None:
        self._given: deque[torch.Tensor] = deque()

    def begin(self, moment: Moment) -> tuple[deque[torch.Tensor], Keep]:
        """What was kept, and what to call with what is to be kept."""
        before, self._given = self._given, deque()
        keep = self._given.append
        return before, (lambda frames: None) if moment.last else (lambda frames: keep(frames.clone()))


class _Start:
    """Tells the first frames that come to a stage from later ones."""

    def __init__(self) -> None:
        self._first: Moment | None = None

    def __call__(self, moment: Moment) -> bool:
        self._first = self._first or moment
        return self._first is moment


class _Layer:
    """A convolution. It keeps rows and frames after the norm, so that each value is normalised once."""

    def __init__(self, stage: Layer, size: Size, run: Run) -> None:
        self._stage, self._size, self._run = stage, size, run
        layer = stage.layer
        self._step = 2 if isinstance(layer, Downsample) else 1
        self._kernel, self._below = 2 * layer.halo + 1, layer.halo
        self._above = 0 if isinstance(layer, Downsample) else layer.halo
        given = layer.channels * (4 if isinstance(layer, Upsample) else 1)
        channels, frames = max(size.channels, given), size.frames + stage.frames.reach
        kernel = kernel_bytes(layer, size.height, size.width, run.device)
        self._most = run.rows(size, channels, frames, whole=KERNELS * kernel)
        self._past, self._starts = _Past(), _Start()

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        size, step = self._size, self._step
        past, keep = self._past.begin(moment)
        held: torch.Tensor | None = None
        filters: list[Filter] = []
        for block in source:
            pieces = block.pieces(self._most)
            del block
            while pieces:
                self._run.checkpoint()
                piece = pieces.popleft()
                last, before = piece.last, past.popleft() if past else None
                if not filters:
                    filters.append(self._filter(len(piece.rows) + (0 if before is None else len(before))))
                window, lead, kept, margin = self._window(piece, held, before, moment, filters[0], keep)
                del piece, before, held
                rows, columns = (kept - self._kernel) // step + 1, slice(margin.left, margin.left + size.width)
                if rows < 1 or lead >= len(window):
                    held = window[:, :, :kept, columns]
                    continue
                held = None if last else window[:, :, rows * step : kept, columns].clone()
                given = [self._filtered(window, rows, lead, filters[0])]
                del window
                if last:
                    filters.clear()  # before stages that come later hold theirs
                yield Block(given.pop(), last)

    def _filtered(self, window: torch.Tensor, rows: int, lead: int, filter_: Filter) -> torch.Tensor:
        """Rows of the output, which are shared among the cores."""
        size, step = self._size, self._step
        times = 2 if isinstance(self._stage.layer, Upsample) else 1
        width = times * size.width // step
        shape = (len(window) - lead, self._stage.layer.channels, times * rows, width)
        found = torch.empty(shape, dtype=window.dtype, device=window.device, memory_format=torch.channels_last)

        def work(start: int, stop: int) -> None:
            below = filter_.margin(stop - start, size.width).below
            part = window[:, :, start * step : (stop - 1) * step + self._kernel + below]
            found[:, :, times * start : times * stop] = filter_(part, stop - start, size.width, lead)

        self._run.each(rows, work)
        return found

    def _filter(self, frames: int) -> Filter:
        """What computes the layer; taps in time for which there are no frames are left out."""
        layer, time = self._stage.layer, self._stage.frames
        if isinstance(layer, Convolution) and frames < layer.taps and not (time.after or time.repeats):
            weight = layer.weight[:, :, -1] if frames == 1 else layer.weight[:, :, -frames:]
            layer = replace(layer, weight=weight)
        return filter_on(layer, self._size.height, self._size.width, self._run.device, self._run.workers)

    def _window(
        self,
        piece: Block,
        held: torch.Tensor | None,
        past: torch.Tensor | None,
        moment: Moment,
        filter_: Filter,
        keep: Keep,
    ) -> tuple[torch.Tensor, int, int, Margin]:
        """The frames and rows that the convolution reads: kept ones, those of the piece, and those beyond the borders.

        Returns the window, how many of its frames are only read, how many rows it has, and the margin around them.
        """
        stage, width = self._stage, self._size.width
        time, frames, rows = stage.frames, len(piece.rows), piece.rows.shape[2]
        earlier = 0 if past is None else len(past)
        front, back, lead = 0, 0, earlier
        if time.after or time.repeats:
            front, back, lead = time.before if self._starts(moment) else 0, time.after if moment.last else 0, time.reach
        top = self._above if held is None else held.shape[2]
        kept = top + rows + (self._below if piece.last else 0)
        margin = filter_.margin(max(1, (kept - self._kernel) // self._step + 1), width)
        shape = (earlier + front + frames + back, piece.rows.shape[1])
        window = torch.empty(
            (*shape, kept + margin.below, margin.left + width + margin.right),
            dtype=piece.rows.dtype,
            device=piece.rows.device,
            memory_format=torch.channels_last,
        )
        inner = window[..., margin.left : margin.left + width]
        window[..., : margin.left] = 0
        window[..., margin.left + width :] = 0
        inner[:, :, :top] = 0 if held is None else held
        inner[:, :, top + rows :] = 0
        fresh = inner[:, :, top : top + rows]
        begin, end = earlier + front, earlier + front + frames

        def fill(start: int, stop: int) -> None:
            if past is not None:
                fresh[:earlier, :, start:stop] = past[:, :, start:stop]
            given, into = piece.rows[:, :, start:stop], fresh[begin:end, :, start:stop]
            normalise(given, into, stage.norm, silu=stage.silu)

        self._run.each(rows, fill)
        if front:
            fresh[earlier:begin] = fresh[begin] if time.repeats else 0
        if back:
            fresh[end:] = fresh[end - 1] if time.repeats else 0
        if time.reach:
            keep(fresh[:end][-time.reach :])
        return window, lead, kept, margin


class _DoubleFrames:
    def __init__(self, stage: DoubleFrames, size: Size, run: Run) -> None:
        self._layer, self._size, self._run = stage.layer, size, run
        self._most = run.rows(size, stage.layer.channels, size.frames)
        self._past, self._starts = _Past(), _Start()

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        past, keep = self._past.begin(moment)
        filter_ = filter_on(self._layer, self._size.height, self._size.width, self._run.device, self._run.workers)
        for block in source:
            stays = int(self._starts(moment))
            pieces = block.pieces(self._most)
            del block
            while pieces:
                self._run.checkpoint()
                piece = pieces.popleft()
                if len(piece.rows) == stays:
                    yield piece
                    continue
                before = past.popleft() if past else None
                yield Block(self._doubled(piece.rows, stays, before, filter_, keep), piece.last)

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


class _HalveFrames:
    def __init__(self, stage: HalveFrames) -> None:
        self._weight, self._bias = stage.weight, stage.bias
        self._past, self._starts = _Past(), _Start()

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        past, keep = self._past.begin(moment)
        for block in source:
            stays = int(self._starts(moment))
            before = past.popleft() if past else None
            yield Block(self._halved(block.rows, stays, before, keep), block.last)

    def _halved(self, rows: torch.Tensor, stays: int, past: torch.Tensor | None, keep: Keep) -> torch.Tensor:
        keep(rows[-1:])
        window = rows if past is None else torch.cat([past, rows])
        found = [rows[:1]] if stays else []
        if len(window) > 1:
            dtype = arithmetic(rows.dtype, rows.device)
            bias = None if self._bias is None else self._bias.to(dtype)
            taps = [window[tap : len(window) - 2 + tap : 2] for tap in range(3)]
            given = torch.cat(taps, 1).permute(0, 2, 3, 1).to(dtype)
            weight = self._weight.squeeze((3, 4)).transpose(1, 2).flatten(1).to(dtype)
            found.append(functional.linear(given, weight, bias).permute(0, 3, 1, 2).to(rows.dtype))
        return torch.cat(found)


class _Each:
    """Rows that do not yet make a row of the output wait for the next block."""

    def __init__(self, stage: Each) -> None:
        self._function, self._together = stage.function, stage.sides.denominator
        self._waiting: torch.Tensor | None = None
        self._starts = _Start()

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
                    waiting.appendleft(part[:, :, count:])
                block.rows[:, :, done : done + count] += part[:, :, :count]
                done += count
                del part
            given = [block]
            del block
            yield given.pop()


class _Attention:
    """Waits for all rows."""

    def __init__(self, stage: Attention) -> None:
        self._stage = stage

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        given = [block.rows for block in source]
        if given:
            rows = given.pop() if len(given) == 1 else torch.cat(given, 2)
            given.clear()
            yield Block(self._attended(rows), True)

    def _attended(self, frames: torch.Tensor) -> torch.Tensor:
        stage, (_, channels, height, width) = self._stage, frames.shape
        found = torch.empty_like(frames)
        for frame, into in zip(torch.split(frames, 1), torch.split(found, 1), strict=True):
            normal = torch.empty_like(frame)
            normalise(frame, normal, stage.norm)
            tokens = normal.permute(0, 2, 3, 1).reshape(-1, channels)
            del normal
            query, key, value = (linear(tokens, part) for part in (stage.query, stage.key, stage.value))
            del tokens
            branch = linear(attend(query, key, value), stage.out)
            torch.add(frame, branch.view(1, height, width, channels).permute(0, 3, 1, 2), out=into)
        return found


def normalise(source: torch.Tensor, into: torch.Tensor, norm: Norm | None, *, silu: bool = False) -> None:
    """Writes a map, after the norm and SiLU if they are asked for. *Shapes*: [f,C,rows,W], channels last, both.

    Few bytes are alive beside the two maps, so for a prediction there is nothing to do.
    """
    if source.is_meta:
        return
    if norm is None and not silu:
        into.copy_(source)
        return
    most = max(1, NORM_BYTES // (4 * source.shape[1] * source.shape[3]))
    for frame, target in zip(source, into, strict=True):
        for rows, goal in zip(torch.split(frame, most, 1), torch.split(target, most, 1), strict=True):
            _normalise(rows.permute(1, 2, 0), goal.permute(1, 2, 0), norm, silu)


def _normalise(values: torch.Tensor, into: torch.Tensor, norm: Norm | None, silu: bool) -> None:
    """*Shapes*: [rows,W,C]."""
    wide = into if into.dtype is torch.float32 else torch.empty_like(values, dtype=torch.float32)
    if norm is None:
        wide.copy_(values)
    else:
        length = torch.linalg.vector_norm(values, dim=-1, keepdim=True, dtype=torch.float32)
        root = length.square_().div_(values.shape[-1]).add_(norm.eps).sqrt_().clamp_min_(LEAST)
        torch.div(values, root, out=wide)
        if norm.weight is not None:
            wide.mul_(norm.weight)
    if silu:
        functional.silu(wide, inplace=True)
    if wide is not into:
        into.copy_(wide)
