"""A sweep over a feature map: its rows are computed strip by strip from top to bottom, several strips side by side."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch

from remote_vae.core.norm import Moments, merged
from remote_vae.core.rows import Computed, Rows, Stored, kernels_for, windows
from remote_vae.core.shuffle import Shuffled
from remote_vae.core.stages import Convolution, Layer, Program, Shuffle, frames_after, sides_after
from remote_vae.core.strip_threads import Span, workers
from remote_vae.core.winograd import CONVOLUTION

T = TypeVar("T")
RowSink = Callable[[int, torch.Tensor], None]  # takes the first row of a strip and the strip

ROWS: Final = CONVOLUTION.outputs
STRIPS_PER_WORKER: Final = 2  # at least, so that no worker is idle while another one computes the last strip


@dataclass(frozen=True, slots=True)
class MapSize:
    """The size of the feature map of one picture, or of a clip's frames."""

    height: int
    width: int
    channels: int
    item_bytes: int
    frames: int = 1

    @property
    def row_bytes(self) -> int:
        return self.frames * self.width * self.channels * self.item_bytes

    @property
    def map_bytes(self) -> int:
        return self.height * self.row_bytes

    def widened(self, channels: int) -> "MapSize":
        """The same map with at least this many channels."""
        return replace(self, channels=max(channels, self.channels))

    def strips(self, plan: "StripPlan", *, halo: int = 0, lead: int = 0) -> int:
        """Bytes of the strips that are computed at a time, with their halo rows and with `lead` frames before them."""
        rows = plan.rows(self)
        frame_bytes = (rows + 2 * halo) * self.row_bytes // self.frames
        return plan.at_a_time(self, rows) * (lead + self.frames) * frame_bytes


def map_sizes(program: Program, image: MapSize) -> Iterator[MapSize]:
    """The size of the input, and of the output of each stage."""
    size = image
    yield size
    for stage in program.stages:
        sides = sides_after(stage, size.height, size.width)
        size = MapSize(*sides, stage.channels, image.item_bytes, frames_after(stage, size.frames))
        yield size


@dataclass(frozen=True, slots=True)
class StripPlan:
    """How many bytes a strip has, and how many strips are computed at a time.

    With `recompute`, maps of the full resolution are computed a second time instead of being stored twice.
    """

    strip_bytes: int
    recompute: bool = False
    workers: int = 1

    def rows(self, size: MapSize) -> int:
        """Rows of a map's strip: at least one, and a multiple of four if possible, because convolutions prefer it."""
        found = max(1, self.strip_bytes // size.row_bytes)
        if self.workers > 1:
            found = min(found, share_of(size.height, STRIPS_PER_WORKER * self.workers))
        return min(size.height, found if found < ROWS else found - found % ROWS)

    def at_a_time(self, size: MapSize, rows: int) -> int:
        """How many strips of this many rows are computed side by side: no more than the map has."""
        return min(self.workers, -(-size.height // rows))


def share_of(rows: int, workers: int, step: int = ROWS) -> int:
    """How many of some rows one worker takes: a multiple of a step, which may leave no rows for the last workers."""
    share = -(-rows // workers)
    return share + -share % step


class Sweep:
    """What all steps of one run share: the plan, the device's kernels, the workers, the sink and the checkpoint."""

    def __init__(self, plan: StripPlan, image: torch.Tensor, sink: RowSink, checkpoint: Callable[[], None]) -> None:
        self.plan, self.image, self.sink = plan, image, sink
        self.kernels = kernels_for(image.device)
        self._item_bytes, self._checkpoint = image.element_size(), checkpoint
        self._workers = workers(plan.workers)

    def each(self, spans: Iterable[Span], work: Callable[[Span], T], take: Callable[[Span, T], None]) -> None:
        """Runs `work` for the spans side by side and gives its results to `take` in order."""
        self._workers.each(self._checked(spans), work, take)

    def _checked(self, spans: Iterable[Span]) -> Iterable[Span]:
        for span in spans:
            self._checkpoint()
            yield span

    def spans(self, source: Rows) -> Iterable[Span]:
        """The strips of a map; their bytes count the wider of what a convolution reads and writes."""
        channels = source.widest if isinstance(source, Computed | Shuffled) else source.channels
        size = MapSize(source.height, source.width, channels, self._item_bytes, source.frames)
        return windows(source.height, self.plan.rows(size))

    def layer(self, source: Rows, layer: Layer | Shuffle) -> Rows:
        """The output of a layer, computed when its rows are read."""
        if isinstance(layer, Shuffle):
            return Shuffled(source, self.layer(source, layer.convolution), layer)
        moments = self.moments(source) if isinstance(layer, Convolution) and layer.norm else None
        return Computed(source, layer, self.kernels, moments, self.image)

    def moments(self, source: Rows) -> Moments:
        """Statistics of a map: those that were gathered when it was stored, or by computing the map once."""
        if isinstance(source, Stored) and source.moments is not None:
            return source.moments
        found: list[Moments] = []

        def work(span: Span) -> Moments:
            return merged(map(self.kernels.moments, source.read(*span)))

        self.each(self.spans(source), work, lambda span, moments: found.append(moments))
        return merged(found)

    def measured(self, strip: torch.Tensor, needed: bool) -> Moments | None:
        """The statistics of a strip if they are needed."""
        return self.kernels.moments(strip) if needed else None

    def store(self, source: Rows, needed: bool, *, keep: bool = False) -> Stored:
        """Stores a map and drops the rows that it is computed from, unless `keep` is set.

        `needed` says whether the statistics of the map are needed.
        """
        stored = Stored.like(source)

        def work(span: Span) -> tuple[torch.Tensor, Moments | None]:
            strip = source.read(*span)[0]
            return strip, self.measured(strip, needed)

        def take(span: Span, found: tuple[torch.Tensor, Moments | None]) -> None:
            stored.append(*found)
            if not keep:
                source.drop(span[1])

        self.each(self.spans(source), work, take)
        return stored
