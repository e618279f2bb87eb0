"""A budget of bytes -> the plan: how a program will run, and how much memory that will take.

The prediction walks through the program as `core.strips` does and adds up what is alive: maps of a layer, the strips
between them, and the caller's own input and output.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from remote_vae.core.attention import CHUNK_BYTES
from remote_vae.core.filters import scratch_bytes
from remote_vae.core.stages import (
    Attention,
    Convolution,
    Downsample,
    Layer,
    Program,
    Residual,
    Stage,
    Upsample,
    layers_of,
)
from remote_vae.core.strips import ROWS, StripPlan
from remote_vae.errors import InvalidValue, TooLarge

STRIP_BYTES: Final = {"cpu": 4 * 2**20}  # what stays in a core's cache; elsewhere as below
LARGE_STRIP_BYTES: Final = 16 * 2**20
FEWEST_STRIPS: Final = 24  # of the widest map: what lies between two maps shall be little beside them
FEWEST_EACH: Final = 12  # for the same reason, where many are computed at a time
FEWEST_EACH_ON_CPU: Final = 6  # by the fastest plan, for which less than a megabyte is too small
LIGHT: Final = 4e7  # products that a core computes in about the time until another one has been woken
WHOLE_BYTES: Final = 2**62


class PlanName(StrEnum):
    """All but TILES give the pixels of the undivided decoder."""

    WHOLE = "whole"  # every layer at once
    STRIPS = "strips"  # two maps of the widest layer
    RECOMPUTE = "strips-recompute"  # one such map, about a quarter more arithmetic
    TILES = "tiles"  # overlapping tiles, blended: approximate


EXACT: Final = (PlanName.STRIPS, PlanName.WHOLE, PlanName.RECOMPUTE)


@dataclass(frozen=True, slots=True)
class Plan:
    """`strips` None runs the model's own code, on `one_core` or all; `peak_bytes` None is not predicted."""

    name: PlanName
    strips: StripPlan | None = None
    peak_bytes: int | None = None
    one_core: bool = False


@dataclass(frozen=True, slots=True)
class ProblemSize:
    """One image's input size, and the bytes around it that stay. *Units*: rows, columns, bytes."""

    height: int
    width: int
    channels: int
    item_bytes: int
    around_bytes: int = 0


def choose(
    program: Program, load: ProblemSize, *, device: str, budget: int | None, wanted: str | None = None, workers: int = 1
) -> tuple[Plan, ...]:
    """The plan to run and, after it, those to fall back on when the device has less memory than it said.

    The fastest exact plan that fits the budget, or the one that is wanted; with fewer strips at a time than `workers`
    only where nothing else fits. *Raises* TooLarge naming the numbers when none fits, InvalidValue for a plan that is
    no exact one.
    """
    order = _by_speed(device)
    names = order if wanted is None else (_exact(wanted),)
    counts = sorted({workers, 1}, reverse=True)
    # Each once: `whole` is the same for any number of workers.
    candidates = list(dict.fromkeys(_plan(program, load, name, device, count) for count in counts for name in names))
    fitting = [plan for plan in candidates if budget is None or (plan.peak_bytes or 0) <= budget]
    if not fitting:
        least = min(candidates, key=lambda plan: plan.peak_bytes or 0)
        raise TooLarge(
            f"this needs {_mega(least.peak_bytes)} MB of memory with plan {least.name.value}; "
            f"{_mega(budget)} MB are free; send a smaller picture"
            + ("" if wanted is None else ", or leave the plan to the server"),
            peak_bytes=least.peak_bytes,
            budget_bytes=budget,
            plan=least.name.value,
        )
    first = fitting[0]
    if wanted is not None:
        return (first,)
    rest = [plan for plan in candidates if (plan.peak_bytes or 0) < (first.peak_bytes or 0)]
    return (first, *sorted(rest, key=lambda plan: -(plan.peak_bytes or 0)))


def is_light(program: Program, load: ProblemSize, cores: int) -> bool:
    """Whether so many cores of a CPU take less time off a convolution than they wait for each other at its end."""
    products, layers = 0, 0
    for stage, size in zip(program.stages, list(_sizes(program, load))[1:], strict=True):
        for layer in layers_of(stage):
            products += size.height * size.width * layer.weight.numel()
            layers += 1
    return products * (1 - 1 / cores) < LIGHT * layers


def _by_speed(device: str) -> tuple[PlanName, ...]:
    """On a CPU strips are the fastest, because they stay in the cache; elsewhere large kernels are."""
    if device == "cpu":
        return EXACT
    return (PlanName.WHOLE, PlanName.STRIPS, PlanName.RECOMPUTE)


def _exact(name: str) -> PlanName:
    if name not in EXACT:
        raise InvalidValue(f"plan={name!r} is not one of {', '.join(EXACT)}", name="plan", allowed=list(EXACT))
    return PlanName(name)


def _mega(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:.0f}"


def _plan(program: Program, load: ProblemSize, name: PlanName, device: str, workers: int) -> Plan:
    widest = max(size.map_bytes for size in _sizes(program, load))
    strips = StripPlan(WHOLE_BYTES)
    if name is not PlanName.WHOLE:
        fewest = ROWS * max(size.map_bytes // size.height for size in _sizes(program, load))
        fastest = device == "cpu" and name is PlanName.STRIPS
        share = widest // (FEWEST_EACH_ON_CPU * workers if fastest else max(FEWEST_STRIPS, FEWEST_EACH * workers))
        strip_bytes = max(fewest, min(STRIP_BYTES.get(device, LARGE_STRIP_BYTES), share))
        strips = StripPlan(strip_bytes, recompute=name is PlanName.RECOMPUTE, workers=workers)
    return Plan(name, strips, predict(program, load, strips))


def predict(program: Program, load: ProblemSize, plan: StripPlan) -> int:
    """Bytes that are alive at the worst moment, the caller's input and output counted."""
    sizes = list(_sizes(program, load))
    full = max(size.height for size in sizes)
    peak = 0
    for index, stage in enumerate(program.stages):
        before, after = sizes[index], sizes[index + 1]
        again = plan.recompute and after.height == full
        if again and isinstance(stage, Upsample):
            continue  # computed by the block that follows
        if again and isinstance(program.stages[index - 1], Upsample):
            before = sizes[index - 1]
        last = index + 1 == len(program.stages)
        held = _stage_bytes(stage, before, after, plan, again=again, last=last)
        peak = max(peak, held + _scratch(stage, before, after, plan, again=again))
    image = load.height * load.width * load.channels * load.item_bytes
    return peak + image + load.around_bytes


@dataclass(frozen=True, slots=True)
class _Size:
    height: int
    width: int
    channels: int
    item_bytes: int

    @property
    def map_bytes(self) -> int:
        return self.height * self.width * self.channels * self.item_bytes

    def strips(self, plan: StripPlan, *, halo: int = 0) -> int:
        """Bytes of the strips that are computed at a time, with their halo rows."""
        rows = min(self.height, plan.rows(self.height, self.width, self.channels, self.item_bytes))
        return plan.at_a_time(self.height, rows) * (rows + 2 * halo) * self.width * self.channels * self.item_bytes


def _scratch(stage: Stage, before: _Size, after: _Size, plan: StripPlan, *, again: bool) -> int:
    """What the stage's convolutions take for themselves: one at a time, or one within the other."""

    def of(layer: Layer, given: _Size) -> int:
        rows = min(
            given.height, plan.rows(given.height, given.width, max(given.channels, layer.channels), given.item_bytes)
        )
        return plan.at_a_time(given.height, rows) * scratch_bytes(layer, given.height, given.width, rows)

    match stage:
        case Residual():
            hidden = replace(after, channels=stage.first.channels)
            given = replace(before, height=after.height, width=after.width)
            first, second = of(stage.first, given), of(stage.second, hidden)
            shortcut = 0 if stage.shortcut is None else of(stage.shortcut, given)
            return max(first + second if again else max(first, second), shortcut)
        case Attention():
            return 0
        case Convolution() | Upsample() | Downsample():
            return of(stage, before)


def _sizes(program: Program, load: ProblemSize) -> Iterator[_Size]:
    """Of the input, and of every stage's output."""
    size = _Size(load.height, load.width, load.channels, load.item_bytes)
    yield size
    for stage in program.stages:
        height, width = size.height, size.width
        if isinstance(stage, Upsample):
            height, width = 2 * height, 2 * width
        elif isinstance(stage, Downsample):
            height, width = height // 2, width // 2
        size = _Size(height, width, stage.channels, load.item_bytes)
        yield size


def _stage_bytes(  # noqa: PLR0911  # a case per stage
    stage: Stage, before: _Size, after: _Size, plan: StripPlan, *, again: bool, last: bool
) -> int:
    match stage:
        case Residual() if again:
            return _recomputed(stage, before, after, plan)
        case Residual():
            hidden = _Size(after.height, after.width, stage.first.channels, after.item_bytes)
            both = hidden.map_bytes + after.map_bytes
            second = both + hidden.strips(plan, halo=1) + after.strips(plan)
            if stage.shortcut is None:
                return max(both + before.strips(plan, halo=1), second)
            return max(_swept(before, plan, (hidden, after), halo=1), second)
        case Attention():
            return _attention(before)
        case Convolution() if last:
            rows = plan.rows(after.height, after.width, max(before.channels, after.channels), after.item_bytes)
            rows = min(rows, after.height)
            written = plan.at_a_time(after.height, rows) * rows * after.width * after.channels * after.item_bytes
            return before.map_bytes + before.strips(plan, halo=stage.halo) + 4 * written
        case Convolution():
            return _swept(before, plan, (after,), halo=stage.halo)
        case Upsample() if not stage.folded:
            doubled = _Size(after.height, after.width, before.channels, after.item_bytes)
            return _swept(before, plan, (after,), halo=1) + doubled.strips(plan, halo=1)
        case Upsample() | Downsample():
            return _swept(before, plan, (after,), halo=1)


def _swept(before: _Size, plan: StripPlan, after: tuple[_Size, ...], *, halo: int) -> int:
    """While maps are written, the one that they come from goes: at the start that is whole, at the end these are."""
    start = before.map_bytes + sum(size.strips(plan) for size in after)
    end = before.strips(plan) + sum(size.map_bytes for size in after)
    return max(start, end) + before.strips(plan, halo=halo)


def _attention(size: _Size) -> int:
    """The map, its tokens, queries, keys and values; then keys and values in float32, and what a chunk of queries takes
    for itself: two rows of channels each, or of scores.
    """
    positions = size.height * size.width
    wide = 2 * positions * size.channels * 4 if size.item_bytes < 4 else 0
    chunk = min(CHUNK_BYTES, 8 * positions * size.channels)
    return max(5 * size.map_bytes, 4 * size.map_bytes + wide + chunk)


def _recomputed(stage: Residual, before: _Size, after: _Size, plan: StripPlan) -> int:
    """One map of the output, the map it is computed from unless that is the same, and the strips between them: each
    step's window beside what the step before it gave, in as many rows as the second convolution's strips have.
    """
    first, channels = stage.first.channels, after.channels
    rows = plan.rows(after.height, after.width, max(first, channels), after.item_bytes)
    side_by_side = plan.at_a_time(after.height, rows)
    row = side_by_side * after.width * after.item_bytes  # of one channel
    given, hidden, found = (rows + 4) * row * before.channels, (rows + 2) * row * first, rows * row * channels
    second = hidden + max(hidden, found)
    if before.height != after.height:
        going = before.strips(plan, halo=2)  # what the strips at work still read
        return max(before.map_bytes, after.map_bytes) + going + max(given + hidden, second) + found
    if stage.shortcut is not None:
        return before.map_bytes + after.map_bytes + max(given + hidden, second) + found
    late = found // side_by_side  # computed, and added once its neighbour is too
    return after.map_bytes + max(given + hidden, second) + late
