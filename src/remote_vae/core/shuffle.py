"""Stages whose channels become pixels, or pixels channels, beside a shortcut of their input."""

import torch

from remote_vae.core.rows import Rows
from remote_vae.core.stages import Shuffle, sides_after


class Shuffled:
    """Rows of a shuffled convolution and its shortcut, computed whenever they are read."""

    def __init__(self, source: Rows, convolved: Rows, stage: Shuffle) -> None:
        self._source, self._convolved, self._stage = source, convolved, stage
        self.frames, self.channels = source.frames, stage.channels
        self.height, self.width = sides_after(stage, source.height, source.width)
        self.widest = max(self.channels, source.channels * stage.down**2)

    def read(self, start: int, stop: int) -> list[torch.Tensor]:
        start, stop = max(start, 0), min(stop, self.height)
        up, down = self._stage.up, self._stage.down
        first, last = start * down // up, -(-stop * down // up)
        (convolved,) = self._convolved.read(first, last)  # rows that are computed come as one piece
        found = shuffle(convolved, up, down)
        del convolved
        found.add_(self._shortcut(first, last))
        row = first * up // down
        if found.shape[2] == stop - start:
            return [found]
        return [found[:, :, start - row : stop - row].clone()]  # a view would keep the whole alive

    def _shortcut(self, first: int, last: int) -> torch.Tensor:
        pieces, up = self._source.read(first, last), self._stage.up
        given = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)
        if up > 1:
            return shuffle(with_channels(given, self.channels * up**2), up, 1)
        return with_channels(shuffle(given, 1, self._stage.down), self.channels)

    def drop(self, row: int) -> None:
        self._convolved.drop(row * self._stage.down // self._stage.up)


def shuffle(rows: torch.Tensor, up: int, down: int) -> torch.Tensor:
    """*Shapes*: [N,up*up*C,H,W] -> [N,C,up*H,up*W], or [N,C,H,W] -> [N,down*down*C,H/down,W/down]; channels last."""
    if up == down == 1:
        return rows
    pixels = rows.permute(0, 2, 3, 1)
    count, height, width, channels = pixels.shape
    if up > 1:
        parts = pixels.reshape(count, height, width, up, up, channels // up**2).transpose(2, 3)
        return parts.reshape(count, up * height, up * width, -1).permute(0, 3, 1, 2)
    parts = pixels.reshape(count, height // down, down, width // down, down, channels).transpose(2, 3)
    return parts.reshape(count, height // down, width // down, -1).permute(0, 3, 1, 2)


def with_channels(rows: torch.Tensor, channels: int) -> torch.Tensor:
    """Repeats each channel, or averages neighbouring ones, so that there are this many. Channels last."""
    pixels = rows.permute(0, 2, 3, 1)
    if rows.shape[1] < channels:
        pixels = pixels.repeat_interleave(channels // rows.shape[1], dim=-1)
    elif rows.shape[1] > channels:
        pixels = pixels.reshape(*pixels.shape[:3], channels, -1).mean(-1)
    return pixels.permute(0, 3, 1, 2)


def shortcut_bytes(read: int, written: int) -> int:
    """Bytes beside the result while a shortcut is added to it. *Units*: bytes of the rows that are read and written."""
    return max(read, written) + written
