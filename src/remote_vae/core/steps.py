"""The steps of a run by strips. Each step says how it runs, and beside that how many bytes are alive while it does."""

from collections import deque
from dataclasses import dataclass, replace

import torch

from remote_vae.core import attention_packed
from remote_vae.core.attention import (
    CHUNK_BYTES,
    FEW_QUERIES,
    QUERIES,
    attend,
    by_products,
    linear,
    multiplied_in,
    products_bytes,
)
from remote_vae.core.filters import lead_of
from remote_vae.core.norm import Moments
from remote_vae.core.rows import Normalised, Rows, Stored
from remote_vae.core.scratch import scratch_of
from remote_vae.core.shuffle import shortcut_bytes
from remote_vae.core.stages import Attention, Convolution, Layer, Residual, Shuffle, Upsample
from remote_vae.core.strip_bytes import between_bytes, scratch, scratches, swept_bytes, window_bytes
from remote_vae.core.strip_threads import Span
from remote_vae.core.sweep import MapSize, StripPlan, Sweep


@dataclass(frozen=True, slots=True)
class Store:
    """Stores the output of a layer, while the map before it goes."""

    layer: Layer | Shuffle
    before: MapSize
    after: MapSize
    measured: bool  # the next stage needs the statistics of the output

    def run(self, sweep: Sweep, source: Rows) -> Rows:
        return sweep.store(sweep.layer(source, self.layer), self.measured)

    def live_bytes(self, plan: StripPlan) -> int:
        written = self.after.widened(self.layer.reads * self.before.channels)
        rows = plan.rows(written)
        at_a_time, read = plan.at_a_time(written, rows), -(-rows * self.before.height // self.after.height)
        layer = self.layer.convolution if isinstance(self.layer, Shuffle) else self.layer
        window = (read + 2 * layer.halo) * self.before.row_bytes
        window += window * lead_of(layer, self.before.frames) // self.before.frames
        window *= 5 * at_a_time if isinstance(layer, Upsample) and not layer.folded else at_a_time
        before = self.before
        scratch = scratch_of(layer, before.height, before.width, read, before.frames)
        held = window + scratch.working(at_a_time)
        if isinstance(self.layer, Shuffle):
            shortcut = shortcut_bytes(read * before.row_bytes, rows * self.after.row_bytes)
            held = max(held, at_a_time * shortcut)
        start = before.map_bytes + at_a_time * rows * self.after.row_bytes
        end = self.after.map_bytes + at_a_time * read * before.row_bytes
        return max(before.map_bytes + window + scratch.made, max(start, end) + held)


@dataclass(frozen=True, slots=True)
class Defer:
    """Stores nothing: the step that follows computes the rows of the upsampled map that it reads."""

    layer: Upsample

    def run(self, sweep: Sweep, source: Rows) -> Rows:
        return sweep.layer(source, self.layer)

    def live_bytes(self, plan: StripPlan) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Give:
    """Gives the output of the last convolution to the sink, while the map before it goes."""

    layer: Convolution | Shuffle
    before: MapSize
    after: MapSize

    def run(self, sweep: Sweep, source: Rows) -> Rows:
        found = sweep.layer(source, self.layer)

        def take(span: Span, strip: torch.Tensor) -> None:
            sweep.sink(span[0], strip)
            found.drop(span[1])

        sweep.each(sweep.spans(found), lambda span: found.read(*span)[0], take)
        return found

    def live_bytes(self, plan: StripPlan) -> int:
        rows = plan.rows(self.after.widened(self.before.channels))
        written = plan.at_a_time(self.after, rows) * rows * self.after.map_bytes // self.after.height
        layer = self.layer.convolution if isinstance(self.layer, Shuffle) else self.layer
        read = self.before.map_bytes + window_bytes(layer, self.before, plan)
        return read + 4 * written + scratch(layer, self.before, plan)


@dataclass(frozen=True, slots=True)
class AddInPlace:
    """Stores both maps of a residual block, and adds the second to the first, while the second goes."""

    block: Residual
    before: MapSize
    after: MapSize
    measured: bool

    def run(self, sweep: Sweep, source: Rows) -> Rows:
        hidden = sweep.layer(source, self.block.first)
        if self.block.shortcut is not None:
            stored, base = self._store_both(sweep, hidden, sweep.layer(source, self.block.shortcut))
        else:
            stored, base = sweep.store(hidden, True, keep=True), _stored(source)
        del hidden  # and with it the first convolution's kernel
        branch = sweep.layer(stored, self.block.second)
        base.moments = None

        def work(span: Span) -> Moments | None:
            return sweep.kernels.add(
                base.read(*span)[0], branch.read(*span)[0], self.block.bias, measured=self.measured
            )

        def take(span: Span, moments: Moments | None) -> None:
            base.measure(moments)
            branch.drop(span[1])

        sweep.each(base.spans(), work, take)
        return base

    def _store_both(self, sweep: Sweep, hidden: Rows, short: Rows) -> tuple[Stored, Stored]:
        """Stores the first convolution and the shortcut in one sweep, so that the map before them can go."""
        stored, base = Stored.like(hidden), Stored.like(short)

        def work(span: Span) -> tuple[torch.Tensor, Moments | None, torch.Tensor]:
            strip = hidden.read(*span)[0]
            return strip, sweep.measured(strip, True), short.read(*span)[0]

        def take(span: Span, found: tuple[torch.Tensor, Moments | None, torch.Tensor]) -> None:
            stored.append(*found[:2])
            base.append(found[2])
            hidden.drop(span[1])

        sweep.each(sweep.spans(hidden), work, take)
        return stored, base

    def live_bytes(self, plan: StripPlan) -> int:
        first, second, shortcut = scratches(self.block, self.before, self.after, plan)
        hidden = replace(self.after, channels=self.block.first.channels)
        both = hidden.map_bytes + self.after.map_bytes
        adding = both + window_bytes(self.block.second, hidden, plan) + self.after.strips(plan)
        storing = both if self.block.shortcut is None else swept_bytes(self.before, (hidden, self.after), plan)
        storing += window_bytes(self.block.first, self.before, plan)
        return max(storing, adding) + max(first, second, shortcut)


@dataclass(frozen=True, slots=True)
class AddLate:
    """Adds a residual branch in place, although the branch is computed from the same map and stored nowhere.

    A strip is changed only after the strips below it, whose halos reach into it, have been computed.
    """

    block: Residual
    size: MapSize
    measured: bool

    def run(self, sweep: Sweep, source: Rows) -> Rows:
        base = _stored(source)
        branch = sweep.layer(sweep.layer(base, self.block.first), self.block.second)
        base.moments = None
        spans = base.spans()
        halo = self.block.first.halo + self.block.second.halo
        neighbours = -(-halo // min(stop - start for start, stop in spans))
        late: deque[tuple[Span, torch.Tensor]] = deque()

        def add(span: Span, found: torch.Tensor) -> None:
            base.measure(sweep.kernels.add(base.read(*span)[0], found, self.block.bias, measured=self.measured))

        def take(span: Span, found: torch.Tensor) -> None:
            late.append((span, found))
            if len(late) > neighbours:
                add(*late.popleft())

        sweep.each(spans, lambda span: branch.read(*span)[0], take)
        while late:
            add(*late.popleft())
        return base

    def live_bytes(self, plan: StripPlan) -> int:
        first, second, shortcut = scratches(self.block, self.size, self.size, plan)
        computing, found, at_a_time = between_bytes(self.block, self.size, self.size, plan)
        return self.size.map_bytes + computing + found // at_a_time + max(first + second, shortcut)


@dataclass(frozen=True, slots=True)
class AddToNew:
    """Stores only the output of a residual block, while the map before it goes; everything between is recomputed.

    `before` is the map that is stored before the block. It is smaller if an upsampling layer was deferred.
    """

    block: Residual
    before: MapSize
    after: MapSize
    measured: bool

    def run(self, sweep: Sweep, source: Rows) -> Rows:
        branch = sweep.layer(sweep.layer(source, self.block.first), self.block.second)
        base = source if self.block.shortcut is None else sweep.layer(source, self.block.shortcut)
        stored = Stored.like(branch)

        def work(span: Span) -> tuple[torch.Tensor, Moments | None]:
            strip = branch.read(*span)[0]
            (piece,) = base.read(*span)  # rows that are computed come as one piece
            return strip, sweep.kernels.add(strip, piece, self.block.bias, measured=self.measured)

        def take(span: Span, found: tuple[torch.Tensor, Moments | None]) -> None:
            stored.append(*found)
            branch.drop(span[1])

        sweep.each(sweep.spans(branch), work, take)
        return stored

    def live_bytes(self, plan: StripPlan) -> int:
        first, second, shortcut = scratches(self.block, self.before, self.after, plan)
        computing, found, _ = between_bytes(self.block, self.before, self.after, plan)
        if self.before.height == self.after.height:
            maps = self.before.map_bytes + self.after.map_bytes
        else:  # the small map goes while the large one grows; strips at work still read a part of it
            maps = max(self.before.map_bytes, self.after.map_bytes) + self.before.strips(plan, halo=2)
        return maps + computing + found + max(first + second, shortcut)


@dataclass(frozen=True, slots=True)
class Attend:
    """Adds attention over all positions to a stored map."""

    attention: Attention
    size: MapSize
    measured: bool

    def run(self, sweep: Sweep, source: Rows) -> Rows:
        base, part = _stored(source), self.attention
        normalised = Normalised(base, sweep.kernels, part.norm, sweep.moments(base), sweep.image)
        tokens = normalised.window(0, base.height, silu=False)
        rows = tokens.permute(0, 2, 3, 1).reshape(-1, base.channels)
        del tokens
        query, key, value = (linear(rows, layer) for layer in (part.query, part.key, part.value))
        del rows
        each = base.height * base.width if part.causal else len(query)  # positions that see the same keys
        queries = self._queries(sweep.plan, query.dtype)
        for start in range(0, len(query), each):
            seen = start + each
            attend(query[start:seen], key[:seen], value[:seen], queries)
        found = linear(query, part.out)
        del query, key, value
        branch = found.view(base.frames, base.height, base.width, -1).permute(0, 3, 1, 2)
        base.moments = None

        def work(span: Span) -> Moments | None:
            return sweep.kernels.add(base.read(*span)[0], branch[:, :, slice(*span)], None, measured=self.measured)

        sweep.each(base.spans(), work, lambda span, moments: base.measure(moments))
        return base

    def live_bytes(self, plan: StripPlan) -> int:
        """The map, its tokens, queries, keys and values; then keys and values in float32, and a chunk of queries.

        A chunk holds two rows of channels for each query, or a row of scores.
        """
        size, positions = self.size, self.size.frames * self.size.height * self.size.width
        queries = self._queries(plan, self.attention.query.weight.dtype)
        if queries:
            chunk = products_bytes(min(queries, positions), positions, size.channels)
            return max(5 * size.map_bytes, 4 * size.map_bytes + chunk)
        wide = 2 * positions * size.channels * 4 if size.item_bytes < 4 else 0
        weight, each = self.attention.query.weight, positions // (size.frames if self.attention.causal else 1)
        if attention_packed.pays(each, size.channels, multiplied_in(weight.dtype, weight.device), weight.device):
            held = attention_packed.held_bytes(each, positions, size.channels, plan.workers)
            return max(5 * size.map_bytes, 4 * size.map_bytes + wide + held)
        chunk = min(CHUNK_BYTES, 8 * positions * size.channels)
        return max(5 * size.map_bytes, 4 * size.map_bytes + wide + chunk)

    def _queries(self, plan: StripPlan, dtype: torch.dtype) -> int:
        """How many queries a chunk by products has; 0 if attention is left to PyTorch's fused kernel."""
        if not by_products(self.size.channels, dtype, self.attention.query.weight.device):
            return 0
        return FEW_QUERIES if plan.recompute else QUERIES


# What is done at one stage. `run` takes the map before the stage and returns the map after it.
Step = Store | Defer | Give | AddInPlace | AddLate | AddToNew | Attend


def _stored(rows: Rows) -> Stored:
    if not isinstance(rows, Stored):
        raise TypeError("this step changes a map in place, so the map must be stored")
    return rows
