"""Runs an encoder or decoder layer by layer over strips of rows: exact, in bounded memory.

GroupNorm needs the whole map's statistics, so a layer is finished before the next begins. They are gathered from each
strip as it is written, and merged. A convolution reads the rows that its strip's neighbours lend it. A strip is freed
as soon as nothing reads it again, and residual branches are added in place: about two maps of the widest layer exist
at a time. With `recompute` the layers of the full resolution do not store what lies between their two convolutions
but compute it again: one such map, for about a quarter more arithmetic. Strips of one layer need nothing of each other,
so several are computed side by side (`core.strip_threads`).
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Final

import torch

from remote_vae.core.attention import attend
from remote_vae.core.filters import arithmetic
from remote_vae.core.norm import Kernels, Moments
from remote_vae.core.rows import Convolved, Downsampled, Normalised, Rows, Strips, Upsampled, kernels_for, windows
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
from remote_vae.core.strip_threads import Span, workers
from remote_vae.core.winograd import CONVOLUTION

ROWS: Final = CONVOLUTION.outputs
EACH: Final = 2  # strips of a map for each worker at least, lest one waits for another that has begun its last

Measured = tuple[torch.Tensor, Moments | None]
Sink = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class StripPlan:
    """How many bytes a strip has, whether the full resolution is computed again rather than stored twice, and how many
    strips are computed at a time.
    """

    strip_bytes: int
    recompute: bool = False
    workers: int = 1

    def rows(self, height: int, width: int, channels: int, item_bytes: int) -> int:
        """Rows of a map's strip; one at least, and fours where there are as many, which is what convolutions like."""
        found = max(1, self.strip_bytes // (width * channels * item_bytes))
        if self.workers > 1:
            share = -(-height // (EACH * self.workers))
            found = min(found, share + -share % ROWS)
        return found if found < ROWS else found - found % ROWS

    def at_a_time(self, height: int, rows: int) -> int:
        """Strips of so many rows that are computed side by side: no more than the map has."""
        return min(self.workers, -(-height // rows))


@torch.inference_mode()
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
        self._workers = workers(plan.workers)
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
                self._give(self._convolved(found, stage), sink)
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
        found: list[Moments] = []

        def work(span: Span) -> Moments:
            return reduce(Moments.merge, map(self._kernels.moments, source.read(*span)))

        self._workers.each(self._spans(source), work, lambda span, new: found.append(new))
        return reduce(Moments.merge, found)

    def _give(self, source: Convolved, sink: Sink) -> None:
        def take(span: Span, strip: torch.Tensor) -> None:
            sink(span[0], strip)
            source.drop(span[1])

        self._workers.each(self._spans(source), lambda span: source.read(*span)[0], take)

    def _store(self, source: Rows, needs: bool, *, keep: bool = False) -> Strips:
        """Every row of a map, computed once from top to bottom, while the map it comes from goes, unless it is kept."""
        stored = Strips(source.height, source.width, source.channels)

        def take(span: Span, found: Measured) -> None:
            stored.append(*found)
            if not keep:
                source.drop(span[1])

        self._workers.each(self._spans(source), lambda span: self._measured(source.read(*span)[0], needs), take)
        return stored

    def _measured(self, strip: torch.Tensor, needs: bool) -> Measured:
        return strip, self._kernels.moments(strip) if needs else None

    def _residual(self, x: Rows, stage: Residual, needs: bool, *, recompute: bool) -> Strips:
        hidden: Rows = self._convolved(x, stage.first)
        if recompute and isinstance(x, Strips) and stage.shortcut is None:
            return self._add_late(x, hidden, stage, needs)
        if recompute:
            return self._add_to_new(x, hidden, stage, needs)
        if stage.shortcut is not None:
            hidden, x = self._store_both(x, hidden, stage.shortcut)
        else:
            hidden = self._store(hidden, True, keep=True)
        if not isinstance(x, Strips):
            raise TypeError("only a recomputing plan leaves a map unstored")
        return self._add_in_place(x, hidden, stage, needs)

    def _store_both(self, x: Rows, hidden: Rows, shortcut: Convolution) -> tuple[Strips, Strips]:
        """The first convolution and the shortcut in one sweep, so that the map below them can go."""
        stored = Strips(hidden.height, hidden.width, hidden.channels)
        base = Strips(hidden.height, hidden.width, hidden.channels)
        short = self._convolved(x, shortcut)

        def work(span: Span) -> tuple[Measured, torch.Tensor]:
            return self._measured(hidden.read(*span)[0], True), short.read(*span)[0]

        def take(span: Span, found: tuple[Measured, torch.Tensor]) -> None:
            stored.append(*found[0])
            base.append(found[1])
            hidden.drop(span[1])

        self._workers.each(self._spans(hidden), work, take)
        return stored, base

    def _add_in_place(self, base: Strips, hidden: Rows, stage: Residual, needs: bool) -> Strips:
        """base += second(hidden), while hidden goes."""
        branch = self._convolved(hidden, stage.second)
        base.moments = None

        def work(span: Span) -> Moments | None:
            strip = base.read(*span)[0].add_(branch.read(*span)[0])
            return self._measured(strip, needs)[1]

        def take(span: Span, moments: Moments | None) -> None:
            base.measure(moments)
            branch.drop(span[1])

        self._workers.each(self._checked(base.spans()), work, take)
        return base

    def _add_late(self, base: Strips, hidden: Rows, stage: Residual, needs: bool) -> Strips:
        """base += second(hidden), where hidden is computed from base: a strip changes once its neighbours below, whose
        halos reach into it, are computed.
        """
        branch = self._convolved(hidden, stage.second)
        base.moments = None
        spans = base.spans()
        halo = stage.first.halo + stage.second.halo
        neighbours = -(-halo // min(stop - start for start, stop in spans))
        late: deque[tuple[Span, torch.Tensor]] = deque()

        def add(span: Span, found: torch.Tensor) -> None:
            base.measure(self._measured(base.read(*span)[0].add_(found), needs)[1])

        def take(span: Span, found: torch.Tensor) -> None:
            late.append((span, found))
            if len(late) > neighbours:
                add(*late.popleft())

        self._workers.each(self._checked(spans), lambda span: branch.read(*span)[0], take)
        while late:
            add(*late.popleft())
        return base

    def _add_to_new(self, x: Rows, hidden: Rows, stage: Residual, needs: bool) -> Strips:
        """shortcut(x) + second(hidden), nothing of either stored, while the map below goes."""
        branch = self._convolved(hidden, stage.second)
        base = x if stage.shortcut is None else self._convolved(x, stage.shortcut)
        stored = Strips(branch.height, branch.width, branch.channels)

        def work(span: Span) -> Measured:
            strip = branch.read(*span)[0]
            for piece in base.read(*span):  # one piece: what is computed comes whole
                strip.add_(piece)
            return self._measured(strip, needs)

        def take(span: Span, found: Measured) -> None:
            stored.append(*found)
            branch.drop(span[1])

        self._workers.each(self._spans(branch), work, take)
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

        def work(span: Span) -> Moments | None:
            return self._measured(x.read(*span)[0].add_(branch[:, :, slice(*span)]), needs)[1]

        self._workers.each(self._checked(x.spans()), work, lambda span, moments: x.measure(moments))
        return x

    def _spans(self, found: Rows) -> Iterable[Span]:
        """By the wider of what a convolution reads and writes: the last one writes three channels and reads many."""
        channels = found.widest if isinstance(found, Convolved) else found.channels
        rows = self._plan.rows(found.height, found.width, channels, self._item_bytes)
        return self._checked(windows(found.height, rows))

    def _checked(self, spans: Iterable[Span]) -> Iterable[Span]:
        for span in spans:
            self._checkpoint()
            yield span


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
