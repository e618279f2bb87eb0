"""Runs an encoder or decoder layer by layer over strips of rows: exact, in bounded memory.

GroupNorm needs the whole map's statistics, so a layer is finished before the next begins. They are gathered from each
strip as it is written, and merged. A convolution reads the rows that its strip's neighbours lend it. A strip is freed
as soon as nothing reads it again, and residual branches are added in place: about two maps of the widest layer exist
at a time. With `recompute` the layers of the full resolution do not store what lies between their two convolutions
but compute it again: one such map, for about a quarter more arithmetic.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from remote_vae.core.attention import attend
from remote_vae.core.moments import Moments
from remote_vae.core.norm import Kernels, kernels_for
from remote_vae.core.precision import arithmetic
from remote_vae.core.rows import Convolved, Downsampled, Normalised, Rows, Strips, Upsampled, windows
from remote_vae.core.stages import (
    Attention,
    Convolution,
    Downsample,
    Program,
    Residual,
    Stage,
    Upsample,
    measured,
)
from remote_vae.core.winograd import CONVOLUTION

ROWS: Final = CONVOLUTION.outputs

Sink = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class StripPlan:
    """How many bytes a strip has, and whether the full resolution is computed again rather than stored twice."""

    strip_bytes: int
    recompute: bool = False

    def rows(self, width: int, channels: int, item_bytes: int) -> int:
        """Rows of a strip; one at least, and fours where there are as many, which is what convolutions like."""
        found = max(1, self.strip_bytes // (width * channels * item_bytes))
        return found if found < ROWS else found - found % ROWS


def run(
    program: Program,
    image: torch.Tensor,
    plan: StripPlan,
    sink: Sink,
    *,
    checkpoint: Callable[[], None] = lambda: None,
) -> None:
    """Gives the output to `sink`, strip by strip from top to bottom, each with its first row.

    `checkpoint` is called before every strip; what it raises ends the run. *Shapes*: one image, [1,C,H,W].
    """
    _Run(plan, kernels_for(image.device), checkpoint).run(program, image, sink)


class _Run:
    def __init__(self, plan: StripPlan, kernels: Kernels, checkpoint: Callable[[], None]) -> None:
        self._plan, self._kernels, self._checkpoint = plan, kernels, checkpoint
        self._item_bytes = 0

    def run(self, program: Program, image: torch.Tensor, sink: Sink) -> None:
        self._item_bytes = image.element_size()
        found: Rows = _whole(image)
        full = _full_resolution(program, found.height)
        for index, stage in enumerate(program.stages):
            again = self._plan.recompute and full in (found.height, 2 * found.height)
            needs = measured(program, index)
            if index + 1 == len(program.stages):
                if not isinstance(stage, Convolution):
                    raise TypeError("a program ends with a convolution")
                last = self._convolved(found, stage)
                for start, stop in windows(last.height, self._rows(last)):
                    self._checkpoint()
                    sink(start, last.read(start, stop)[0])
                    last.drop(stop)
            elif isinstance(stage, Upsample) and again and 2 * found.height == full:
                found = Upsampled(found, stage, self._kernels)  # computed by the block that follows
            else:
                found = self._stage(stage, found, needs, recompute=again and found.height == full)

    def _stage(self, stage: Stage, found: Rows, needs: bool, *, recompute: bool) -> Rows:
        match stage:
            case Convolution():
                return self._store(self._convolved(found, stage), needs)
            case Upsample():
                return self._store(Upsampled(found, stage, self._kernels), needs)
            case Downsample():
                return self._store(Downsampled(found, stage, self._kernels), needs)
            case Attention():
                return self._attention(found, stage, needs)
            case Residual():
                return self._residual(found, stage, needs, recompute=recompute)

    def _convolved(self, source: Rows, stage: Convolution) -> Convolved:
        return Convolved(source, stage, self._kernels, self._moments(source) if stage.norm else None)

    def _moments(self, source: Rows) -> Moments:
        """As they were gathered when the map was stored, else by computing the map once."""
        if isinstance(source, Strips) and source.moments is not None:
            return source.moments
        found: Moments | None = None
        for start, stop in windows(source.height, self._rows(source)):
            self._checkpoint()
            for piece in source.read(start, stop):
                new = self._kernels.moments(piece)
                found = new if found is None else found.merge(new)
        if found is None:
            raise ValueError("a map without rows has no statistics")
        return found

    def _store(self, source: Rows, needs: bool) -> Strips:
        """Every row of a map, computed once from top to bottom, while the map it comes from goes."""
        stored = Strips(source.height, source.width, source.channels)
        for start, stop in windows(source.height, self._rows(source)):
            self._checkpoint()
            self._append(stored, source.read(start, stop)[0], needs)
            source.drop(stop)
        return stored

    def _append(self, stored: Strips, strip: torch.Tensor, needs: bool) -> None:
        stored.append(strip)
        if needs:
            self._gather(stored, strip)

    def _gather(self, stored: Strips, strip: torch.Tensor) -> None:
        new = self._kernels.moments(strip)
        stored.moments = new if stored.moments is None else stored.moments.merge(new)

    def _residual(self, x: Rows, stage: Residual, needs: bool, *, recompute: bool) -> Strips:
        hidden: Rows = self._convolved(x, stage.first)
        if recompute and isinstance(x, Strips) and stage.shortcut is None:
            return self._add_in_place(x, hidden, stage, needs, keep=2)
        if recompute:
            return self._add_to_new(x, hidden, stage, needs)
        if stage.shortcut is None:
            if not isinstance(x, Strips):
                raise TypeError("only a recomputing plan leaves a map unstored")
            hidden = self._store_beside(hidden)
            return self._add_in_place(x, hidden, stage, needs, keep=0)
        hidden, base = self._store_both(x, hidden, stage.shortcut)
        return self._add_in_place(base, hidden, stage, needs, keep=0)

    def _store_beside(self, hidden: Rows) -> Strips:
        """As `_store`, but the map below is needed again."""
        stored = Strips(hidden.height, hidden.width, hidden.channels)
        for start, stop in windows(hidden.height, self._rows(hidden)):
            self._checkpoint()
            self._append(stored, hidden.read(start, stop)[0], True)
        return stored

    def _store_both(self, x: Rows, hidden: Rows, shortcut: Convolution) -> tuple[Strips, Strips]:
        """The first convolution and the shortcut in one sweep, so that the map below them can go."""
        stored = Strips(hidden.height, hidden.width, hidden.channels)
        base = Strips(hidden.height, hidden.width, hidden.channels)
        short = self._convolved(x, shortcut)
        for start, stop in windows(hidden.height, self._rows(hidden)):
            self._checkpoint()
            self._append(stored, hidden.read(start, stop)[0], True)
            base.append(short.read(start, stop)[0])
            hidden.drop(stop)
        return stored, base

    def _add_in_place(self, base: Strips, hidden: Rows, stage: Residual, needs: bool, *, keep: int) -> Strips:
        """base += second(hidden). With `keep`, hidden is computed from base, whose last old rows it still reads."""
        branch = self._convolved(hidden, stage.second)
        base.moments = None
        for index, (start, stop) in enumerate(base.bounds()):
            self._checkpoint()
            strip = base.add(index, branch.read(start, stop)[0], keep=keep)
            if needs:
                self._gather(base, strip)
            if not keep:
                branch.drop(stop)
        return base

    def _add_to_new(self, x: Rows, hidden: Rows, stage: Residual, needs: bool) -> Strips:
        """shortcut(x) + second(hidden), nothing of either stored, while the map below goes."""
        branch = self._convolved(hidden, stage.second)
        base = x if stage.shortcut is None else self._convolved(x, stage.shortcut)
        stored = Strips(branch.height, branch.width, branch.channels)
        for start, stop in windows(branch.height, self._rows(branch)):
            self._checkpoint()
            strip = branch.read(start, stop)[0]
            for piece in base.read(start, stop):  # one piece: what is computed comes whole
                strip.add_(piece)
            self._append(stored, strip, needs)
            branch.drop(stop)
        return stored

    def _attention(self, x: Rows, stage: Attention, needs: bool) -> Strips:
        if not isinstance(x, Strips):
            raise TypeError("attention works on a stored map")
        tokens = Normalised(x, self._kernels, stage.norm, self._moments(x)).window(0, x.height, silu=False)
        shape = tokens.shape
        rows = tokens.permute(0, 2, 3, 1).reshape(-1, shape[1])
        del tokens
        query, key, value = (_linear(rows, part) for part in (stage.query, stage.key, stage.value))
        del rows
        found = _linear(attend(query, key, value), stage.out)
        del query, key, value
        branch = found.view(1, shape[2], shape[3], -1).permute(0, 3, 1, 2)
        x.moments = None
        for index, (start, stop) in enumerate(x.bounds()):
            self._checkpoint()
            strip = x.add(index, branch[:, :, start:stop], keep=0)
            if needs:
                self._gather(x, strip)
        return x

    def _rows(self, found: Rows) -> int:
        """By the wider of what a convolution reads and writes: the last one writes three channels and reads many."""
        channels = found.widest if isinstance(found, Convolved) else found.channels
        return self._plan.rows(found.width, channels, self._item_bytes)


def _linear(rows: torch.Tensor, part: Convolution) -> torch.Tensor:
    dtype = arithmetic(rows.dtype, rows.device)
    bias = None if part.bias is None else part.bias.to(dtype)
    return torch.nn.functional.linear(rows.to(dtype), part.weight.flatten(1).to(dtype), bias).to(rows.dtype)


def _whole(image: torch.Tensor) -> Strips:
    found = Strips(image.shape[2], image.shape[3], image.shape[1])
    found.append(image.contiguous(memory_format=torch.channels_last))
    return found


def _full_resolution(program: Program, height: int) -> int:
    """The largest height that a map of the program has."""
    heights = [height]
    for stage in program.stages:
        if isinstance(stage, Upsample):
            heights.append(2 * heights[-1])
        elif isinstance(stage, Downsample):
            heights.append(heights[-1] // 2)
    return max(heights)
