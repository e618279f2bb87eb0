"""What the network's input makes of a norm: factors and shifts, and the norm of positions that they scale."""

from collections.abc import Iterator

import torch
from torch.nn import functional

from remote_vae.core.attention import linear
from remote_vae.core.block import Block, Moment
from remote_vae.core.local import Scaled
from remote_vae.core.local_frames import Size
from remote_vae.core.root_mean_square import normalise
from remote_vae.core.stages import Convolution


class Scales:
    """Factors and shifts for a map of a height, which are made of the rows of the input that are nearest to a block."""

    def __init__(self, parts: tuple[Convolution, Convolution], moment: Moment, height: int) -> None:
        self._parts, self._small, self._predicts = parts, moment.given, moment.predicts
        self._times = height // self._small.shape[2]

    def scale(self, rows: torch.Tensor, first: int) -> None:
        """Scales rows in place, of which the first one has this number, and applies SiLU."""
        if self._predicts:  # factors and shifts of a frame
            torch.empty(2 * rows[0].numel() // self._times, dtype=rows.dtype, device=rows.device)
            return
        made, given = len(rows), len(self._small)
        alone = made % 2 if made > 1 else 0
        many = (made - alone) // (given - alone)
        for frame in range(given):
            start = frame if frame < alone else alone + (frame - alone) * many
            stop = start + (1 if frame < alone else many)
            factor, shift = (self._nearest(part, frame, first, rows.shape[2]) for part in self._parts)
            values = rows[start:stop].permute(0, 2, 3, 1)
            values = values.view(*values.shape[:2], -1, self._times, values.shape[3])
            functional.silu(values.mul_(factor).add_(shift), inplace=True)

    def _nearest(self, part: Convolution, frame: int, first: int, count: int) -> torch.Tensor:
        """*Shapes*: [count,w,1,C], where w is the width of the input."""
        times, above = self._times, first // self._times
        near = self._small[frame, :, above : -(-(first + count) // times)]
        found = linear(near.permute(1, 2, 0).flatten(0, 1), part).view(*near.shape[1:], -1)
        tall = found[:, None].expand(-1, times, -1, -1).flatten(0, 1)
        return tall[first - above * times :][:count, :, None]


class ScaledRows:
    """A scaled norm of positions, which does not wait for rows."""

    def __init__(self, stage: Scaled, size: Size) -> None:
        self._stage, self._height = stage, size.height

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        scales, row = Scales(self._stage.scaled, moment, self._height), 0
        for block in source:
            found = torch.empty_like(block.rows)
            normalise(block.rows, found, self._stage.norm)
            given = [Block(found, block.last)]
            del block, found
            scales.scale(given[0].rows, row)
            row += given[0].rows.shape[2]
            yield given.pop()
