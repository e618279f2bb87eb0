"""Feature maps by rows: stored as strips, or computed from other maps whenever their rows are read.

A map is [1,C,H,W], channels last. `read` gives the rows start..stop, as far as they exist, as pieces from top to
bottom; `drop(row)` promises that no row above `row` is read again, so that strips can go.
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import Protocol

import torch
from torch.nn import functional

from remote_vae.core.moments import Moments
from remote_vae.core.norm import Kernels
from remote_vae.core.stages import Convolution, Downsample, Norm, Upsample


class Rows(Protocol):
    height: int
    width: int
    channels: int

    def read(self, start: int, stop: int) -> list[torch.Tensor]: ...

    def drop(self, row: int) -> None: ...


class Strips:
    """Rows that are stored. Strips are appended from top to bottom, and may be replaced once in the same order."""

    def __init__(self, height: int, width: int, channels: int) -> None:
        self.height, self.width, self.channels = height, width, channels
        self.moments: Moments | None = None
        self._starts: list[int] = []
        self._strips: list[torch.Tensor | None] = []
        self._filled = 0
        self._dropped = 0  # strips before this one are gone
        self._replaced = 0  # rows above are new; of the old ones only `_kept` is left
        self._kept: torch.Tensor | None = None

    def append(self, strip: torch.Tensor) -> None:
        self._starts.append(self._filled)
        self._strips.append(strip)
        self._filled += strip.shape[2]

    def bounds(self) -> list[tuple[int, int]]:
        """First and one-past-last row of each strip."""
        return list(zip(self._starts, [*self._starts[1:], self._filled], strict=True))

    def read(self, start: int, stop: int) -> list[torch.Tensor]:
        start, stop = max(start, 0), min(stop, self.height)
        pieces: list[torch.Tensor] = []
        if start < self._replaced:
            if self._kept is None or start < self._replaced - self._kept.shape[2]:
                raise IndexError("rows that have been replaced")
            above = self._kept[:, :, self._kept.shape[2] - (self._replaced - start) :]
            pieces.append(above[:, :, : stop - start])
            start = self._replaced
        index = bisect_right(self._starts, start) - 1
        while start < stop:
            first, strip = self._starts[index], self.strip(index)
            pieces.append(strip[:, :, start - first : stop - first])
            start, index = first + strip.shape[2], index + 1
        return pieces

    def drop(self, row: int) -> None:
        while self._dropped + 1 < len(self._starts) and self._starts[self._dropped + 1] <= row:
            self._strips[self._dropped] = None
            self._dropped += 1

    def strip(self, index: int) -> torch.Tensor:
        """*Raises* IndexError for one that has been dropped."""
        found = self._strips[index]
        if found is None:
            raise IndexError("a strip that has been dropped")
        return found

    def add(self, index: int, branch: torch.Tensor, *, keep: int) -> torch.Tensor:
        """A strip becomes itself plus `branch`, in place; its last `keep` old rows can still be read."""
        strip, first = self.strip(index), self._starts[index]
        last = first + strip.shape[2]
        if keep:
            old = torch.cat(self.read(last - keep, last), 2) if first else strip[:, :, -keep:].clone()
            self._kept, self._replaced = old, last
        if last == self.height:  # every row is new, and may be read again
            self._kept, self._replaced = None, 0
        return strip.add_(branch)


class Normalised:
    """Windows of another map's rows for a convolution: zeros outside, norm and SiLU inside."""

    def __init__(self, source: Rows, kernels: Kernels, norm: Norm | None, moments: Moments | None) -> None:
        self._source, self._kernels, self._norm, self._moments = source, kernels, norm, moments

    def window(self, start: int, stop: int, *, right: int = 0, silu: bool = True) -> torch.Tensor:
        """*Shapes*: [1,C,stop-start,W+right]."""
        pieces = self._source.read(start, stop)
        whole = start >= 0 and stop <= self._source.height and not right
        if self._norm is None and whole and len(pieces) == 1:
            return pieces[0]
        size = (1, self._source.channels, stop - start, self._source.width + right)
        found = torch.empty(size, dtype=pieces[0].dtype, device=pieces[0].device, memory_format=torch.channels_last)
        if right:
            found[..., -right:] = 0
        row = max(0, -start)
        found[:, :, :row] = 0
        for piece in pieces:
            into = found[:, :, row : row + piece.shape[2], : self._source.width]
            self._fill(piece, into, silu)
            row += piece.shape[2]
        found[:, :, row:] = 0
        return found

    def _fill(self, piece: torch.Tensor, into: torch.Tensor, silu: bool) -> None:
        if self._norm is None or self._moments is None:
            into.copy_(piece)
        else:
            self._kernels.normalise(piece, into, self._norm, self._moments, silu=silu)


class Convolved:
    """Rows of a convolution over another map, computed when they are read."""

    def __init__(self, source: Rows, stage: Convolution, kernels: Kernels, moments: Moments | None = None) -> None:
        self.height, self.width, self.channels = source.height, source.width, stage.channels
        self.widest = max(source.channels, stage.channels)
        self._source, self._stage = source, stage
        self._input = Normalised(source, kernels, stage.norm, moments)

    def read(self, start: int, stop: int) -> list[torch.Tensor]:
        start, stop = max(start, 0), min(stop, self.height)
        halo, stage = self._stage.halo, self._stage
        window = self._input.window(start - halo, stop + halo)
        return [functional.conv2d(window, stage.weight, stage.bias, padding=(0, halo))]

    def drop(self, row: int) -> None:
        self._source.drop(row - self._stage.halo)


class Upsampled:
    """Rows of a map of twice the size."""

    def __init__(self, source: Rows, stage: Upsample, kernels: Kernels) -> None:
        self.height, self.width, self.channels = 2 * source.height, 2 * source.width, stage.channels
        self._source, self._stage = source, stage
        self._input = Normalised(source, kernels, None, None)

    def read(self, start: int, stop: int) -> list[torch.Tensor]:
        start, stop = max(start, 0), min(stop, self.height)
        first, last = start // 2, (stop + 1) // 2
        window = self._input.window(first - 1, last + 1)
        if not self._stage.folded:
            doubled = functional.interpolate(window, scale_factor=2.0)
            above = start - 2 * first + 1
            rows = doubled[:, :, above : above + stop - start + 2]
            return [functional.conv2d(rows, self._stage.weight, self._stage.bias, padding=(0, 1))]
        # A padding of 3 where 1 belongs cuts off the two rows above and below that a halo row makes.
        found = functional.conv_transpose2d(window, self._stage.weight, self._stage.bias, stride=2, padding=(3, 1))
        if (start, stop) == (2 * first, 2 * last):
            return [found]
        return [found[:, :, start - 2 * first : stop - 2 * first].clone()]  # a part would keep all of it alive

    def drop(self, row: int) -> None:
        self._source.drop(row // 2 - 1)


class Downsampled:
    """Rows of a map of half the size."""

    def __init__(self, source: Rows, stage: Downsample, kernels: Kernels) -> None:
        self.height, self.width, self.channels = source.height // 2, source.width // 2, stage.channels
        self._source, self._stage = source, stage
        self._input = Normalised(source, kernels, None, None)

    def read(self, start: int, stop: int) -> list[torch.Tensor]:
        start, stop = max(start, 0), min(stop, self.height)
        window = self._input.window(2 * start, 2 * stop + 1, right=1)
        return [functional.conv2d(window, self._stage.weight, self._stage.bias, stride=2)]

    def drop(self, row: int) -> None:
        self._source.drop(2 * row)


def windows(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """First and one-past-last rows of strips of at most `rows` rows."""
    for start in range(0, height, rows):
        yield start, min(start + rows, height)
