"""Stages of a local network that see whole frames, and so wait for all of their rows."""

from collections import deque
from collections.abc import Iterator

import torch

from remote_vae.core.attention import attend, linear
from remote_vae.core.block import Block, Moment, Run
from remote_vae.core.local import Attention, Each, FrameNorm
from remote_vae.core.local_frames import Size
from remote_vae.core.norm import Groups, Moments, merged
from remote_vae.core.root_mean_square import normalise
from remote_vae.core.rows import kernels_for
from remote_vae.core.stages import Norm as GroupNorm
from remote_vae.core.stream_scaled import Scales


class NormedFrames:
    """Waits for all rows, whose statistics are gathered as they come, and keeps them."""

    def __init__(self, stage: FrameNorm, size: Size, run: Run) -> None:
        self._stage, self._height, self._kernels = stage, size.height, kernels_for(run.device)
        self._of_groups: list[Groups] = []

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        return self.applied(self.measured(source), moment)

    def measured(self, source: Iterator[Block]) -> Iterator[Block]:
        """The same blocks after all of them have come."""
        held: deque[Block] = deque()
        gathered: list[Moments] = []
        for block in source:
            if not block.rows.is_meta:
                found = [self._kernels.moments(frames) for frames in self._apart(block.rows)]
                gathered = [*map(merged, zip(gathered, found, strict=True))] if gathered else found
            held.append(block)
            del block
        self._of_groups = [moments.of_groups(self._stage.norm.groups) for moments in gathered]
        yield from popped(held)

    def applied(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        """The blocks after the norm, by the statistics of those that were measured."""
        scaled, row = self._stage.scaled, 0
        scales = None if scaled is None else Scales(scaled, moment, self._height)
        for block in source:
            given = [Block(self._normalised(block.rows, silu=self._stage.silu and scales is None), block.last)]
            del block
            if scales is not None:
                scales.scale(given[0].rows, row)
            row += given[0].rows.shape[2]
            yield given.pop()

    def _normalised(self, rows: torch.Tensor, *, silu: bool) -> torch.Tensor:
        """Rows after the norm; nothing is held of them that a prediction would not see."""
        found = torch.empty_like(rows)
        if rows.is_meta:
            return found
        for frames, into, statistics in zip(self._apart(rows), self._apart(found), self._of_groups, strict=True):
            self._kernels.normalise(frames, into, self._stage.norm, statistics, silu=silu)
        return found

    def _apart(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The frames that have statistics of their own."""
        return (rows,) if self._stage.together else torch.split(rows, 1)


class Attended:
    """Waits for all rows. If it is causal, keys and values of all frames so far are kept."""

    def __init__(self, stage: Attention, run: Run) -> None:
        self._stage, self._cores = stage, run.workers if run.device.type == "cpu" else 0
        self._keys: torch.Tensor | None = None
        self._values: torch.Tensor | None = None

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        given = [block.rows for block in source]
        if given:
            rows = given.pop() if len(given) == 1 else torch.cat(given, 2)
            given.clear()
            attended = self._attended(rows)
            del rows
            if moment.last:
                self._keys = self._values = None
            given.append(attended)
            del attended
            yield Block(given.pop(), True)

    def _attended(self, frames: torch.Tensor) -> torch.Tensor:
        stage, (_, channels, height, width) = self._stage, frames.shape
        found = torch.empty_like(frames)
        for frame, into in zip(torch.split(frames, 1), torch.split(found, 1), strict=True):
            normal = self._normalised(frame)
            tokens = normal.permute(0, 2, 3, 1).reshape(-1, channels)
            del normal
            query, key, value = (linear(tokens, part) for part in (stage.query, stage.key, stage.value))
            del tokens
            if stage.causal:
                key = self._keys = _joined(self._keys, key)
                value = self._values = _joined(self._values, value)
            branch = linear(attend(query, key, value, cores=self._cores), stage.out)
            torch.add(frame, branch.view(1, height, width, channels).permute(0, 3, 1, 2), out=into)
        return found

    def _normalised(self, frame: torch.Tensor) -> torch.Tensor:
        norm = self._stage.norm
        if isinstance(norm, Each):
            return norm.function(frame, False)
        found = torch.empty_like(frame)
        if not isinstance(norm, GroupNorm):
            normalise(frame, found, norm)
        elif not frame.is_meta:  # where there are no values
            kernels = kernels_for(frame.device)
            kernels.normalise(frame, found, norm, kernels.moments(frame).of_groups(norm.groups), silu=False)
        return found


def _joined(before: torch.Tensor | None, now: torch.Tensor) -> torch.Tensor:
    return now if before is None else torch.cat([before, now])


def popped(held: "deque[Block]") -> Iterator[Block]:
    while held:
        yield held.popleft()
