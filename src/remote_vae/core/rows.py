"""Feature maps by rows: stored as strips, or computed from other maps whenever their rows are read.

A map is [F,C,H,W], channels last: all frames of a clip, or one picture. `read` gives the rows from start to stop that
exist, as pieces from top to bottom.
`drop(row)` promises that no row above `row` is read again, so strips above it are freed.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Protocol

import torch
from torch.nn import functional

from remote_vae.core.attention import linear
from remote_vae.core.filters import Direct, filter_for, lead_of
from remote_vae.core.has_triton import has_triton
from remote_vae.core.margin import NO_MARGIN, Margin
from remote_vae.core.norm import Cpu, Kernels, Moments, Plain
from remote_vae.core.stages import Convolution, Downsample, Layer, Norm, Upsample, frames_after, sides_after
from remote_vae.core.strip_threads import Span


class Rows(Protocol):
    frames: int
    height: int
    width: int
    channels: int

    def read(self, start: int, stop: int) -> list[torch.Tensor]: ...

    def drop(self, row: int) -> None: ...


class Stored:
    """A map that is stored as strips, which are appended from top to bottom, and the statistics of all of them."""

    def __init__(self, frames: int, height: int, width: int, channels: int) -> None:
        self.frames, self.height, self.width, self.channels = frames, height, width, channels
        self.moments: Moments | None = None
        self._starts: list[int] = []
        self._strips: list[torch.Tensor | None] = []
        self._filled = 0
        self._dropped = 0  # strips before this one are gone

    @classmethod
    def of(cls, image: torch.Tensor) -> "Stored":
        """A whole map as one strip."""
        found = cls(len(image), image.shape[2], image.shape[3], image.shape[1])
        found.append(image)
        return found

    @classmethod
    def like(cls, rows: Rows) -> "Stored":
        """A map of the same size, without strips."""
        return cls(rows.frames, rows.height, rows.width, rows.channels)

    def append(self, strip: torch.Tensor, moments: Moments | None = None) -> None:
        self._starts.append(self._filled)
        self._strips.append(strip)
        self._filled += strip.shape[2]
        self.measure(moments)

    def measure(self, moments: Moments | None) -> None:
        """Merges the statistics of one more strip, if there are any."""
        if moments is not None:
            self.moments = moments if self.moments is None else self.moments.merge(moments)

    def spans(self) -> list[Span]:
        """The rows of each strip."""
        return list(zip(self._starts, [*self._starts[1:], self._filled], strict=True))

    def read(self, start: int, stop: int) -> list[torch.Tensor]:
        """*Raises* IndexError for rows that were dropped."""
        start, stop = max(start, 0), min(stop, self.height)
        pieces: list[torch.Tensor] = []
        index = bisect_right(self._starts, start) - 1
        while start < stop:
            first, strip = self._starts[index], self._strips[index]
            if strip is None:
                raise IndexError("a strip that has been dropped")
            pieces.append(strip[:, :, start - first : stop - first])
            start, index = first + strip.shape[2], index + 1
        return pieces

    def drop(self, row: int) -> None:
        while self._dropped + 1 < len(self._starts) and self._starts[self._dropped + 1] <= row:
            self._strips[self._dropped] = None
            self._dropped += 1


class Normalised:
    """Windows of another map's rows for a convolution: norm and SiLU inside the map, zeros outside.

    `guide` is the program's input, by which some norms are scaled.
    If it `repeats` edges, the nearest values of the map stand outside instead, or, above and to the left, those next to
    them if it `mirrors`; windows then begin with `lead` frames that are copies of the first.
    """

    def __init__(
        self, source: Rows, kernels: Kernels, norm: Norm | None, moments: Moments | None, guide: torch.Tensor, *,
        repeats: bool = False, mirrors: bool = False, lead: int = 0,
    ) -> None:  # fmt: skip
        self._source, self._kernels, self._norm = source, kernels, norm
        self._guide, self._repeats, self._beside, self._lead = guide, repeats, int(mirrors), lead
        self._of_groups = None if norm is None or moments is None else moments.of_groups(norm.groups, norm.offset)

    def window(self, start: int, stop: int, *, margin: Margin = NO_MARGIN, silu: bool = True) -> torch.Tensor:
        """*Shapes*: [lead+F,C,stop-start,W] and the margin around it."""
        pieces = self._source.read(start, stop)
        inside = sum(piece.shape[2] for piece in pieces)
        whole = start >= 0 and stop <= self._source.height and margin == NO_MARGIN
        if self._norm is None and whole and len(pieces) == 1 and not self._lead:
            return pieces[0]
        left, right = margin.left, margin.left + self._source.width
        size = (
            self._lead + self._source.frames,
            self._source.channels,
            stop - start + margin.below,
            right + margin.right,
        )
        window = torch.empty(size, dtype=pieces[0].dtype, device=pieces[0].device, memory_format=torch.channels_last)
        found = window[self._lead :]
        row = above = max(0, -start)
        for outside in (found[..., :left], found[..., right:], *_rows_outside(found, above, above + inside)):
            if outside.numel():  # a GPU would be told to write nothing
                outside.zero_()
        for piece in pieces:
            into = found[:, :, row : row + piece.shape[2], left:right]
            self._fill(piece, into, start + row, silu)
            row += piece.shape[2]
        if self._repeats:
            beside = left + self._beside, above + self._beside
            found[..., :left] = found[..., beside[0] : beside[0] + 1]
            found[..., right:] = found[..., right - 1 : right]
            found[:, :, :above] = found[:, :, beside[1] : beside[1] + 1]
            found[:, :, row:] = found[:, :, row - 1 : row]
            window[: self._lead] = found[0]
        return window

    def _fill(self, piece: torch.Tensor, into: torch.Tensor, row: int, silu: bool) -> None:
        """`row` is the number of the piece's first row."""
        norm = self._norm
        if norm is None or self._of_groups is None:
            into.copy_(piece)
            return
        self._kernels.normalise(piece, into, norm, self._of_groups, silu=silu and norm.scaled is None)
        if norm.scaled is not None:
            _scale(into, row, norm.scaled, self._guide, self._source.height // self._guide.shape[2])
            if silu:
                functional.silu(into, inplace=True)


def _scale(
    rows: torch.Tensor, first: int, parts: tuple[Convolution, Convolution], guide: torch.Tensor, times: int
) -> None:
    """Scales rows in place by what is made of the guide; the first one has this number. One frame, channels last."""
    above, count = first // times, rows.shape[2]
    near = guide[:, :, above : -(-(first + count) // times)].repeat_interleave(times, 2)
    tokens = near[0, :, first - above * times :][:, :count].permute(1, 2, 0).reshape(-1, guide.shape[1])
    factor, shift = (linear(tokens, part).view(count, len(tokens) // count, 1, -1) for part in parts)
    values = rows.permute(0, 2, 3, 1).view(1, count, len(tokens) // count, times, -1)
    torch.addcmul(shift, values, factor, out=values)


def _rows_outside(window: torch.Tensor, first: int, stop: int) -> tuple[torch.Tensor, ...]:
    """The rows above and below; as one tensor if there is one row of each."""
    if first == 1 and stop + 1 == window.shape[2]:
        return (window[:, :, ::stop],)
    return window[:, :, :first], window[:, :, stop:]


class Computed:
    """Rows of a layer's output, computed from another map whenever they are read."""

    def __init__(
        self, source: Rows, layer: Layer, kernels: Kernels, moments: Moments | None, guide: torch.Tensor
    ) -> None:
        self._up, self._down = 1 + isinstance(layer, Upsample), 1 + isinstance(layer, Downsample)
        self._above = self._below = layer.halo
        if isinstance(layer, Downsample):
            self._above, self._below = (layer.halo, 0) if layer.repeats else (0, layer.halo)
        self.frames = frames_after(layer, source.frames)
        self.height, self.width = sides_after(layer, source.height, source.width)
        self.channels = self.widest = layer.channels
        norm, mirrors = None, isinstance(layer, Downsample) and layer.mirrors
        if isinstance(layer, Convolution):
            norm, self.widest = layer.norm, max(source.channels, layer.channels)
        self._source = source
        self._lead = lead_of(layer, source.frames)
        self._input = Normalised(
            source, kernels, norm, moments, guide, repeats=layer.repeats, mirrors=mirrors, lead=self._lead
        )
        self._filter = filter_for(layer, source.height, source.width, source.frames)

    def read(self, start: int, stop: int) -> list[torch.Tensor]:
        start, stop = max(start, 0), min(stop, self.height)
        if (start, stop) == (0, self.height) and isinstance(self._filter, Direct) and self._filter.takes_whole_maps:
            return [self._filter.of_map(self._input.window(0, self._source.height))]
        first, last = start * self._down // self._up, -(-stop * self._down // self._up)
        margin = self._filter.margin(last - first, self._source.width)
        window = self._input.window(first - self._above, last + self._below, margin=margin)
        found = self._filter(window, last - first, self._source.width, self._lead)
        row = first * self._up // self._down
        if stop - start == found.shape[2]:
            return [found]
        return [found[:, :, start - row : stop - row].clone()]  # a view would keep the whole alive

    def drop(self, row: int) -> None:
        self._source.drop(row * self._down // self._up - self._above)


def windows(height: int, rows: int) -> Iterator[Span]:
    """The rows of strips that have at most `rows` rows, from top to bottom."""
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


def kernels_for(device: torch.device) -> Kernels:
    if device.type == "cpu":
        return Cpu()
    if has_triton(device):
        from remote_vae.core.norm_triton import Triton

        return Triton()
    return Plain()
