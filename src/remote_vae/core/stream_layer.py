"""A convolution of a local network at work on blocks."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import torch

from remote_vae.core import pairs
from remote_vae.core.account import Account, filter_on, is_paired, kernel_bytes
from remote_vae.core.block import Block, Keep, Moment, Past, Run, Start, apart
from remote_vae.core.filters import Direct, Recombined, arithmetic
from remote_vae.core.four_rows import FourRows
from remote_vae.core.local import Frames, Layer
from remote_vae.core.local_frames import Size
from remote_vae.core.margin import Margin
from remote_vae.core.pairs import Paired
from remote_vae.core.root_mean_square import normalise
from remote_vae.core.stages import Convolution, Downsample, Upsample
from remote_vae.core.sweep import share_of

KERNELS: Final = 2  # a map as large as two recombined kernels: by blocks, the kernels of several layers would be held

Filter = Direct | FourRows | Recombined | Paired | Account
Held = torch.Tensor | list[torch.Tensor] | None  # rows for the next window: after the norm, or, as a list, before it


class Convolved:
    """A convolution. It keeps rows and frames after the norm, so that each value is normalised once.

    A lean run that has no frames of before, and takes one row at a time, keeps rows as they came, because a residual
    sum keeps the same rows.

    A kernel that takes little of a block's time, or a recombined one about as large as a block, is made again for each
    block, because several of them would otherwise be held while later stages work.

    With the frames that come it makes as many frames before them `again`, for the next layer, which is `given` these
    frames with every block instead of keeping them.
    """

    def __init__(self, stage: Layer, size: Size, run: Run, again: int = 0, *, given: bool = False) -> None:
        self._stage, self._size, self._run = stage, size, run
        self._again, self._keeps = again, again or (0 if given else stage.frames.reach)
        layer = stage.layer
        self._step = 2 if isinstance(layer, Downsample) else 1
        self._kernel, self._below = 2 * layer.halo + 1, layer.halo
        self._above = 0 if isinstance(layer, Downsample) else layer.halo
        made = layer.channels * (4 if isinstance(layer, Upsample) else 1)
        reach = max(again, stage.frames.reach)
        channels, frames = max(size.channels, made), 1 if run.one_frame else size.frames + reach
        self.kernel_bytes = kernel = kernel_bytes(layer, size, run)
        self._most = run.rows(size, channels, frames, whole=KERNELS * kernel)
        self._whole = kernel > 0 and self._most == size.height
        self._remade = run.block_bytes < 2 * kernel <= 3 * run.block_bytes
        if is_paired(layer, size, run):
            self._remade = size.frames * self._most * size.width >= pairs.MANY_POSITIONS
        self._remade = self._remade and not run.one_frame  # whose maps are all that is held beside kernels
        # The frames before one frame may be its copies, so one sum of all taps does; in 16 bits it would be rounded.
        self._flat = run.one_frame and stage.frames.repeats and arithmetic(layer.weight.dtype, run.device).itemsize == 4
        self._frames = Frames() if self._flat else stage.frames
        self._past, self._starts = Past(), Start()

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        size, step = self._size, self._step
        past, keep = self._past.begin(moment)
        held: Held = None
        begun = False
        filters: list[Filter] = []
        for piece in self._run.pieces(_joined(source) if self._whole else source, self._most):
            last, before = piece.last, past.popleft() if past else None
            earlier = piece.lead if before is None else len(before)
            raw = self._run.lean and self._most == 1 and before is None
            if raw and held is None:
                held = [self._zeros(piece.rows)] if self._above else []
            if not filters:
                filters.append(self._filter(len(piece.rows) - piece.lead, earlier))
            window, lead, kept, margin = self._window(piece, held, before, moment, filters[0], keep)
            rows, columns = (kept - self._kernel) // step + 1, slice(margin.left, margin.left + size.width)
            held = _from([*held, piece.rows], max(0, rows) * step) if raw and isinstance(held, list) else None
            del piece, before
            if not moment.predicts:
                self._write_borders(window, kept, columns, top=not begun, bottom=last)
            if rows < 1 or lead >= len(window):
                held = held or window[:, :, :kept, columns]
                continue
            if last:
                held = None
            elif not raw:
                held = moment.copied(window[:, :, rows * step : kept, columns])
            given = [self._filtered(window, rows, lead, filters[0], moment)]
            del window
            if last or self._remade:
                filters.clear()  # before stages that come later hold theirs
            begun = True
            yield Block(given.pop(), last, earlier if self._again else 0)

    def _zeros(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows above a map."""
        return empty((*rows.shape[:2], self._above, self._size.width), rows).zero_()

    def _write_borders(self, window: torch.Tensor, kept: int, columns: slice, *, top: bool, bottom: bool) -> None:
        if self._stage.mirrors:
            _mirror(window, kept, columns, top=top, bottom=bottom)
        elif self._stage.layer.repeats:
            _repeat(window, kept, columns, top=top, bottom=bottom)

    def _filtered(self, window: torch.Tensor, rows: int, lead: int, filter_: Filter, moment: Moment) -> torch.Tensor:
        """Rows of the output, which are shared among the cores."""
        size, step = self._size, self._step
        times = 2 if isinstance(self._stage.layer, Upsample) else 1
        width = times * size.width // step
        if self._run.workers == 1 or (isinstance(filter_, Direct) and filter_.reads_most(window)):
            return filter_(window, rows, size.width, lead)
        shape = (len(window) - lead, self._stage.layer.channels, times * rows, width)
        found = empty(shape, window)
        if moment.predicts:
            filter_.write(window, found, rows, size.width, lead)  # which holds as much as those of all cores
            return found

        def work(start: int, stop: int) -> None:
            below = filter_.margin(stop - start, size.width).below
            part = window[:, :, start * step : (stop - 1) * step + self._kernel + below]
            filter_.write(part, found[:, :, times * start : times * stop], stop - start, size.width, lead)

        self._run.each(rows, work, filter_.step)
        return found

    def _filter(self, count: int, before: int) -> Filter:
        """What computes the layer; taps in time for which there are no frames are left out."""
        layer, time, frames = self._stage.layer, self._frames, before + count
        if self._flat:
            layer = replace(layer, weight=layer.weight.sum(2, dtype=torch.float32))
        elif isinstance(layer, Convolution) and frames < layer.taps and not (time.after or time.repeats):
            weight = layer.weight[:, :, -1] if frames == 1 else layer.weight[:, :, -frames:]
            layer = replace(layer, weight=weight)
        rows = share_of(self._most, self._run.workers)
        return filter_on(layer, replace(self._size, frames=count), self._run, rows)

    def _window(
        self,
        piece: Block,
        held: Held,
        past: torch.Tensor | None,
        moment: Moment,
        filter_: Filter,
        keep: Keep,
    ) -> tuple[torch.Tensor, int, int, Margin]:
        """The frames and rows that the convolution reads: kept ones, those of the piece, and those beyond the borders.

        Returns the window, how many of its frames are only read, how many rows it has, and the margin around them.
        """
        width = self._size.width
        time, frames, rows = self._frames, len(piece.rows), piece.rows.shape[2]
        earlier = 0 if past is None else len(past)
        front, back, lead = 0, 0, 0 if self._again else earlier + piece.lead
        if time.after or time.repeats:
            front, back, lead = time.before if self._starts(moment) else 0, time.after if moment.last else 0, time.reach
        above = held if isinstance(held, list) else [] if held is None else [held]
        top = sum(part.shape[2] for part in above) if above else self._above
        kept = top + rows + (self._below if piece.last else 0)
        margin = filter_.margin(max(1, (kept - self._kernel) // self._step + 1), width)
        sides = (kept + margin.below, margin.left + width + margin.right)
        window = empty((earlier + front + frames + back, piece.rows.shape[1], *sides), piece.rows)
        columns, end = slice(margin.left, margin.left + width), earlier + front + frames
        if not moment.predicts:
            self._write(window, columns, top, held, past, piece, front)
        if self._keeps:
            keep(window[max(0, end - self._keeps) : end, :, top : top + rows, columns])
        return window, lead, kept, margin

    def _write(
        self,
        window: torch.Tensor,
        columns: slice,
        top: int,
        held: Held,
        past: torch.Tensor | None,
        piece: Block,
        front: int,
    ) -> None:
        """Fills a window, in which the rows of the piece begin at `top` and its frames after `front` copies."""
        rows, inner = piece.rows.shape[2], window[..., columns]
        if isinstance(held, torch.Tensor):
            inner[:, :, :top] = held
        above, below = inner[:, :, : top if held is None else 0], inner[:, :, top + rows :]
        for outside in (window[..., : columns.start], window[..., columns.stop :], above, below):
            if outside.numel():  # a GPU would be told to write nothing
                outside.zero_()
        self._fill(inner[:, :, top : top + rows], past, piece.rows, front)
        first = 0
        for part in held if isinstance(held, list) else ():
            self._fill(inner[:, :, first : first + part.shape[2]], None, part, front)
            first += part.shape[2]

    def _fill(self, fresh: torch.Tensor, past: torch.Tensor | None, rows: torch.Tensor, front: int) -> None:
        """Writes rows of a window: frames of before, rows after the norm, and copies before and after them."""
        stage, repeats, earlier = self._stage, self._frames.repeats, 0 if past is None else len(past)
        begin, end = earlier + front, earlier + front + len(rows)

        def fill(start: int, stop: int) -> None:
            if past is not None:
                fresh[:earlier, :, start:stop] = past[:, :, start:stop]
            normalise(rows[:, :, start:stop], fresh[begin:end, :, start:stop], stage.norm, silu=stage.silu)

        self._run.each(rows.shape[2], fill)
        if front:
            fresh[earlier:begin] = fresh[begin] if repeats else 0
        if end < len(fresh):
            fresh[end:] = fresh[end - 1] if repeats else 0


def _from(parts: list[torch.Tensor], first: int) -> list[torch.Tensor]:
    """The rows of some maps from a row on."""
    found = []
    for part in parts:
        if first < part.shape[2]:
            found.append(apart(part[:, :, first:]))
        first = max(0, first - part.shape[2])
    return found


def _joined(source: Iterator[Block]) -> Iterator[Block]:
    """All rows as one block."""
    lead, parts = 0, []
    for block in source:
        lead = block.lead
        parts.append(block.rows)
        del block
    if parts:
        found = [parts.pop() if len(parts) == 1 else torch.cat(parts, 2)]
        parts.clear()
        yield Block(found.pop(), True, lead)


def _mirror(window: torch.Tensor, kept: int, columns: slice, *, top: bool, bottom: bool) -> None:
    """Fills the row and the column beyond each border. The first row waits for the second one."""
    if top and kept > 2:
        window[:, :, 0] = window[:, :, 2]
    if bottom:
        window[:, :, kept - 1] = window[:, :, kept - 3]
    window[..., columns.start - 1] = window[..., columns.start + 1]
    window[..., columns.stop] = window[..., columns.stop - 2]


def _repeat(window: torch.Tensor, kept: int, columns: slice, *, top: bool, bottom: bool) -> None:
    """Fills the row and the column beyond each border with those of the border."""
    if top:
        window[:, :, 0] = window[:, :, 1]
    if bottom:
        window[:, :, kept - 1] = window[:, :, kept - 2]
    window[..., columns.start - 1] = window[..., columns.start]
    window[..., columns.stop] = window[..., columns.stop - 1]


def empty(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
