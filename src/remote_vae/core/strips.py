"""Runs an encoder or decoder layer by layer over strips of rows: exact, in bounded memory.

GroupNorm needs the statistics of the whole map, so a layer is finished before the next one begins. The statistics of
each strip are gathered when it is written, and merged. A convolution also reads the rows of the neighbouring strips
that it needs. A strip is freed as soon as nothing reads it again, and residual branches are added in place, so about
two maps of the widest layer exist at a time. With recomputation, the layers of the full resolution store nothing
between their two convolutions: one map exists at a time, for about a quarter more arithmetic. The strips of a layer do
not depend on each other, so several are computed side by side (`core.strip_threads`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final

import torch

from remote_vae.core.clips import beside_windows, frames_of, longest_window, run_windows
from remote_vae.core.executor import NO_ARGUMENTS, RECOMPUTE, STRIPS, WHOLE, Arguments, Sink
from remote_vae.core.filters import arithmetic
from remote_vae.core.rows import Rows, Stored
from remote_vae.core.stages import (
    Attention,
    Convolution,
    Downsample,
    Program,
    Residual,
    Shuffle,
    Upsample,
    layers_of,
    measured,
)
from remote_vae.core.steps import AddInPlace, AddLate, AddToNew, Attend, Defer, Give, Step, Store
from remote_vae.core.sweep import ROWS, MapSize, RowSink, StripPlan, Sweep, map_sizes

STRIP_BYTES: Final = {"cpu": 4 * 2**20}  # fits into the cache of a core; other devices use the size below
LARGE_STRIP_BYTES: Final = 16 * 2**20
FEWEST_STRIPS: Final = 24  # of the widest map, so that the strips at work stay small compared with the maps
FEWEST_EACH: Final = 12  # of the widest map for each worker, for the same reason
FEWEST_EACH_ON_CPU: Final = 6  # for each worker of the fastest plan, because strips below a megabyte are slower
LIGHT: Final = 4e7  # products that one core computes in about the time that it takes to wake another one
WHOLE_BYTES: Final = 2**62
MOST_VALUES: Final = 2**30  # of a strip: from 2**31 on, the fast convolutions of GPUs are not used or not safe
SMALL_BYTES: Final = 24 * 2**20  # below this, strips would save no memory that matters


@torch.inference_mode()
def run(
    program: Program,
    image: torch.Tensor,
    plan: StripPlan,
    sink: RowSink,
    *,
    checkpoint: Callable[[], None] = lambda: None,
) -> None:
    """Gives the output to `sink`, strip by strip from top to bottom, each with the number of its first row.

    `checkpoint` is called before every strip; an exception from it ends the run. *Shapes*: one picture, [1,C,H,W], or
    the frames of one window of a clip, [F,C,H,W].
    """
    sweep = Sweep(plan, image, sink, checkpoint)
    found: Rows = Stored.of(image.contiguous(memory_format=torch.channels_last))
    frames, channels, height, width = image.shape
    size = MapSize(height, width, channels, image.element_size(), frames)
    for step in steps_of(program, size, recompute=plan.recompute):
        found = step.run(sweep, found)


def predict(program: Program, image: MapSize, plan: StripPlan) -> int:
    """Bytes that are alive at the worst moment of a run, its input included and its output not."""
    return image.map_bytes + max(step.live_bytes(plan) for step in steps_of(program, image, recompute=plan.recompute))


def steps_of(program: Program, image: MapSize, *, recompute: bool) -> Iterator[Step]:
    """What is done at each stage; `recompute` says whether the layers of the full resolution are recomputed."""
    sizes = list(map_sizes(program, image))
    full = max(size.height for size in sizes)
    before, deferred = image, False
    for index, (stage, after) in enumerate(zip(program.stages, sizes[1:], strict=True)):
        needed, again = measured(program, index), recompute and after.height == full
        if index + 1 == len(program.stages):
            if not isinstance(stage, Convolution | Shuffle):
                raise TypeError("a program ends with a convolution")
            yield Give(stage, before, after)
            return
        if again and isinstance(stage, Upsample):
            yield Defer(stage)
            deferred = True
            continue  # the map before the upsampling stays
        match stage:
            case Residual() if again and (deferred or stage.shortcut is not None):
                yield AddToNew(stage, before, after, needed)
            case Residual() if again:
                yield AddLate(stage, after, needed)
            case Residual():
                yield AddInPlace(stage, before, after, needed)
            case Attention():
                yield Attend(stage, after, needed)
            case Convolution() | Upsample() | Downsample() | Shuffle():
                yield Store(stage, before, after, needed)
        before, deferred = after, False


@dataclass(frozen=True, slots=True)
class Strips:
    """An executor that runs a program in strips, or in one strip if its name is `whole`.

    *Units*: `workers` is the number of strips at a time.
    """

    name: str
    program: Program = field(repr=False, compare=False)
    device: str
    workers: int = 1
    exact: ClassVar[bool] = True

    def suits(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        return not is_small(self.program, shape, dtype, torch.device(self.device))

    def peak_bytes(self, shape: tuple[int, ...], dtype: torch.dtype, output: int) -> int:
        clip = _size_of(shape, dtype)
        size = longest_window(self.program, clip)
        return predict(self.program, size, self.plan(size)) + beside_windows(self.program, clip) + output

    def run(
        self, z: torch.Tensor, sink: Sink, checkpoint: Callable[[], None], arguments: Arguments = NO_ARGUMENTS
    ) -> None:
        """No model that runs in strips takes arguments."""
        if self.program.before is not None:
            z = self.program.before(z)
        size = _size_of(z.shape, z.dtype)
        plan, frames = self.plan(longest_window(self.program, size)), frames_of(self.program, size.frames)

        def window(image: torch.Tensor, give: RowSink) -> None:
            run(self.program, image, plan, give, checkpoint=checkpoint)

        for index, one in enumerate(z):
            clip = one[None] if one.ndim == 3 else one.transpose(0, 1)
            run_windows(self.program, clip, window, sink, index * frames)

    def plan(self, image: MapSize) -> StripPlan:
        """How large the strips are."""
        if self.name == WHOLE:
            return StripPlan(MOST_VALUES * image.item_bytes)
        sizes = list(map_sizes(self.program, image))
        widest = max(size.map_bytes for size in sizes)
        least = ROWS * max(size.map_bytes // size.height for size in sizes)
        fastest = self.device == "cpu" and self.name == STRIPS
        count = FEWEST_EACH_ON_CPU * self.workers if fastest else max(FEWEST_STRIPS, FEWEST_EACH * self.workers)
        most = STRIP_BYTES.get(self.device, LARGE_STRIP_BYTES)
        return StripPlan(max(least, min(most, widest // count)), self.name == RECOMPUTE, self.workers)


def strip_executors(program: Program, device: str, workers: int) -> tuple[Strips, ...]:
    """The fastest executor for a device first, then those with one strip at a time, which need the least memory.

    On a CPU strips are the fastest because they stay in its cache; on other devices large kernels are.
    """
    names = (STRIPS, WHOLE, RECOMPUTE) if device == "cpu" else (WHOLE, STRIPS, RECOMPUTE)
    several = [Strips(name, program, device, 1 if name == WHOLE else workers) for name in names]
    return tuple(dict.fromkeys([*several, *(replace(executor, workers=1) for executor in several)]))


def is_small(program: Program, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the model's own code runs a picture of this size better than strips.

    A CPU without fast 16-bit products takes strips for every size, because they compute in float32.
    """
    if arithmetic(dtype, device) is not dtype:
        return False
    return predict_whole(program, shape, dtype) <= SMALL_BYTES


def predict_whole(program: Program, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes that are alive if one picture is run in one strip; kept, because every executor asks for it."""

    def found() -> int:
        return predict(program, longest_window(program, _size_of(shape, dtype)), StripPlan(WHOLE_BYTES))

    return program.peaks.find((dtype, tuple(shape[1:])), found)


def is_light(program: Program, shape: tuple[int, ...], cores: int) -> bool:
    """Whether several cores would lose more time by waiting for each other than they gain by sharing convolutions."""
    sizes = map_sizes(program, _size_of(shape, torch.float32))
    next(sizes)
    products, layers = 0, 0
    for stage, size in zip(program.stages, sizes, strict=True):
        for layer in layers_of(stage):
            products += size.frames * size.height * size.width * layer.weight.numel()
            layers += 1
    return products * (1 - 1 / cores) < LIGHT * layers


def _size_of(shape: tuple[int, ...], dtype: torch.dtype) -> MapSize:
    """*Shapes*: [B,C,H,W] or [B,C,F,H,W]; of one picture or clip."""
    frames = shape[2] if len(shape) == 5 else 1
    return MapSize(shape[-2], shape[-1], shape[1], dtype.itemsize, frames)
