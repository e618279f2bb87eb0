"""What a prediction for a large clip counts in its place, so that it takes about as long as one for a small clip.

Maps grow with the area, so two small clips tell how much more a large one takes. If rows flow through the stages, the
first ones tell what all take.
"""

from collections.abc import Iterator
from itertools import accumulate
from math import prod, sqrt
from typing import Final

import torch

from remote_vae.core.block import Block
from remote_vae.core.local import Stage
from remote_vae.core.local_frames import Size

# Blocks of the widest map of the two small clips. If norms wait for all rows, maps take nearly all memory; otherwise
# it takes more blocks until each layer computes as it does in a large clip.
COUNTS: Final = (50, 100)
COUNTS_OF_NORMED: Final = (8, 20)

Sides = tuple[int, ...]


def widest(stages: tuple[Stage, ...], size: Size) -> int:
    """Values of the largest map between two stages."""
    sizes = accumulate(stages, lambda size, stage: stage.after(size), initial=size)
    return max(size.frames * size.channels * size.height * size.width for size in sizes)


def sides_of_part(sides: Sides, share: float, step: int) -> Sides:
    """The sides of a part of a map, as square as it can be, in multiples of a step."""
    short = min(*sides, step * max(1, round(sqrt(share * prod(sides)) / step)))
    return short, step * max(1, round(share * prod(sides) / short / step))


def extended(few: int, more: int, areas: tuple[int, int], area: int) -> int:
    """Bytes for an area, by those of two smaller areas."""
    return more + (more - few) * (area - areas[1]) // (areas[1] - areas[0])


def first_rows(blocks: Iterator[Block], enough: int, height: int) -> Iterator[Block]:
    """Blocks until the stages hold what they will hold; if a map of this height is stored, then the others as one.

    The others are there while some more blocks are computed, as they would be towards the end.
    """
    others: list[torch.Tensor] = []
    row = 0
    for block in blocks:
        given, last = [block], block.last
        row += block.rows.shape[2]
        if row >= enough and height and not others:
            others.append(block.rows.new_empty((*block.rows.shape[:2], height - row, block.rows.shape[3])))
        del block
        yield given.pop()
        if row >= 2 * enough and not last:
            for rows in others:
                yield Block(rows[:, :, rows.shape[2] - (height - row) :], True)
            return
