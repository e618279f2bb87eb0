"""Stages of a local network that see whole frames, and so wait for all of their rows."""

from collections import deque
from collections.abc import Iterator

import torch

from remote_vae.core.attention import attend, linear
from remote_vae.core.block import Block, Moment, Run
from remote_vae.core.local import Attention, FrameNorm
from remote_vae.core.norm import Moments, merged
from remote_vae.core.root_mean_square import normalise
from remote_vae.core.rows import kernels_for


class NormedFrames:
    """Waits for all rows, whose statistics are gathered as they come, and keeps them."""

    def __init__(self, stage: FrameNorm, run: Run) -> None:
        self._norm, self._kernels = stage.norm, kernels_for(run.device)

    def through(self, source: Iterator[Block], moment: Moment) -> Iterator[Block]:
        held: deque[Block] = deque()
        gathered: list[Moments] = []
        for block in source:
            if not block.rows.is_meta:
                found = [self._kernels.moments(frame) for frame in torch.split(block.rows, 1)]
                gathered = [*map(merged, zip(gathered, found, strict=True))] if gathered else found
            held.append(block)
            del block
        of_groups = [moments.of_groups(self._norm.groups) for moments in gathered]
        for block in popped(held):
            normal = torch.empty_like(block.rows)
            frames = zip(torch.split(block.rows, 1), torch.split(normal, 1), of_groups, strict=False)
            for frame, into, statistics in frames:  # none on meta, where there are no values
                self._kernels.normalise(frame, into, self._norm, statistics, silu=True)
            given = [Block(normal, block.last)]
            del block, normal, frames
            yield given.pop()


class Attended:
    """Waits for all rows. If it is causal, keys and values of all frames so far are kept."""

    def __init__(self, stage: Attention) -> None:
        self._stage = stage
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
            normal = torch.empty_like(frame)
            normalise(frame, normal, stage.norm)
            tokens = normal.permute(0, 2, 3, 1).reshape(-1, channels)
            del normal
            query, key, value = (linear(tokens, part) for part in (stage.query, stage.key, stage.value))
            del tokens
            if stage.causal:
                key = self._keys = _joined(self._keys, key)
                value = self._values = _joined(self._values, value)
            branch = linear(attend(query, key, value), stage.out)
            torch.add(frame, branch.view(1, height, width, channels).permute(0, 3, 1, 2), out=into)
        return found


def _joined(before: torch.Tensor | None, now: torch.Tensor) -> torch.Tensor:
    return now if before is None else torch.cat([before, now])


def popped(held: "deque[Block]") -> Iterator[Block]:
    while held:
        yield held.popleft()
