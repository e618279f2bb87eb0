"""A clip by windows of frames: each runs like a picture of several frames, and its finished frames go to the sink."""

from collections.abc import Callable
from dataclasses import replace

import torch

from remote_vae.core.executor import Sink
from remote_vae.core.stages import Program, Windows, frames_after
from remote_vae.core.strip_threads import Span
from remote_vae.core.sweep import MapSize, RowSink, map_sizes

Window = Callable[[torch.Tensor, RowSink], None]
"""Runs one window, [F,C,H,W], and gives its output row by row."""


def frames_of(program: Program, frames: int) -> int:
    """How many frames a program makes of this many."""
    for stage in program.stages:
        frames = frames_after(stage, frames)
    return frames


def longest_window(program: Program, clip: MapSize) -> MapSize:
    """The size of the longest window of a clip."""
    cut = program.windows
    return clip if cut is None or clip.frames <= cut.length else replace(clip, frames=min(clip.frames, cut.length + 1))


def beside_windows(program: Program, clip: MapSize) -> int:
    """Bytes that are alive while a window runs: the rest of the clip, and the frames that windows are blended with."""
    cut = program.windows
    rest = clip.map_bytes - longest_window(program, clip).map_bytes
    if cut is None or rest == 0:
        return 0
    *_, output = map_sizes(program, clip)
    return rest + 2 * cut.blended * replace(output, frames=1).map_bytes


def run_windows(program: Program, clip: torch.Tensor, window: Window, sink: Sink, first: int) -> None:
    """Gives all frames of a clip to the sink, which counts them from `first`. *Shapes*: [F,C,H,W]."""
    cut, frames = program.windows, len(clip)
    if cut is None or frames <= cut.length:
        window(clip, lambda row, strip: sink(first, row, strip))
        return
    blending = _Blending(cut, sink, first, frames_of(program, frames))
    for start, stop in _spans(cut, frames):
        given = frames_of(program, stop - start) - (start > 0)
        if given == 0:
            continue  # the window's only frame is the one that is dropped
        if start and given <= min(1, cut.blended):
            blending.repeat(given)
        else:
            blending.begin(start // cut.stride)
            window(clip[start:stop], blending.put)


def _spans(cut: Windows, frames: int) -> list[Span]:
    return [(start, min(start + cut.length + 1, frames)) for start in range(0, frames, cut.stride)]


class _Blending:
    """Blends the frames of a window with the last ones of the window before, as the model's own code does."""

    def __init__(self, cut: Windows, sink: Sink, first: int, frames: int) -> None:
        self._cut, self._sink, self._first, self._end = cut, sink, first, first + frames
        self._index, self._next = 0, first
        self._before: torch.Tensor | None = None  # the last frames of the window before
        self._last: list[tuple[int, torch.Tensor]] = []  # and, by rows, of this one

    def begin(self, index: int) -> None:
        """A window begins."""
        self._index = index
        if index:
            self._before = torch.cat([rows for _, rows in self._last], 2)
            self._next = self._first + 1 + index * self._cut.kept
        self._last = []

    def put(self, row: int, strip: torch.Tensor) -> None:
        """Takes rows of all frames of the window."""
        kept = self._cut.kept + (self._index == 0)
        if self._before is not None:
            strip = strip[1:]
            before = self._before[:, :, row : row + strip.shape[2]]
            count = min(len(before), len(strip), self._cut.blended)
            for frame in range(count):  # in this order of operations the bits are those of the model's own code
                share = frame / count
                strip[frame] = before[frame - count] * (1 - share) + strip[frame] * share
        self._last.append((row, strip[-self._cut.blended :].clone()))
        self._sink(self._next, row, strip[: min(kept, self._end - self._next)])

    def repeat(self, frames: int) -> None:
        """A window whose only frame is blended with a weight of zero: what is before it stays."""
        for row, rows in self._last:
            self._sink(self._next + self._cut.kept + (self._index == 0), row, rows[-frames:])
