"""Models that run piece by piece: tiles, clips, frames or pictures that the model itself treats one after the other.

A family says how its module's own code divides a video and joins what comes out. Here each finished block goes to the
sink at once, and only what a later piece is joined with is kept. So the memory is that of one piece and the overlaps,
whatever the length of a video, and the bits are those of the module's own code.
"""

import math
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import Final

import torch
from torch import nn

from remote_vae.core.executor import NO_ARGUMENTS, PIECES, Arguments, Executor, Sink
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.own_code import Rehearsed, between_layers

COPIES: Final = 2  # of a finished block, which the job makes on the way to its output
STEADY: Final = 2  # runs of frames after which a longer video takes no more memory

Net = Callable[[torch.Tensor], torch.Tensor]
Each = Callable[[Net, torch.Tensor], torch.Tensor]
"""Runs a net on a piece. A generator gives the same net to it for all pieces that the net treats alike."""
Block = tuple[int, int, torch.Tensor]
"""The number of its first frame, its first row, and [N,C,rows,W]."""
Blocks = Generator[Block, None, None]
Piecewise = Callable[[nn.Module, torch.Tensor, Each], Blocks]
"""Takes the module and one picture or video, as a batch; gives the finished blocks."""


class Pieces(Rehearsed):
    """An executor that runs one video of a batch after the other, and each of them piece by piece."""

    name, exact = PIECES, True

    def __init__(self, module: nn.Module, piecewise: Piecewise) -> None:
        super().__init__(module)
        self._piecewise = piecewise

    def suits(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        return True

    def peak_bytes(self, shape: tuple[int, ...], dtype: torch.dtype, output: int) -> int | None:
        one = self.peak_of_one(shape, dtype)
        return None if one is None else one + _others(shape, dtype) + output

    def _rehearse(self, module: nn.Module, one: torch.Tensor, live: LiveBytes) -> None:
        """Pieces of one size take the same memory, so a net runs once for each size.

        What a net keeps takes the place of what it kept before, so the rise of the bytes counts, not all that it makes.
        """
        known: dict[tuple[Net, torch.Size], tuple[int, torch.Size, torch.dtype]] = {}

        def each(net: Net, piece: torch.Tensor) -> torch.Tensor:
            if (net, piece.shape) not in known:
                found, rise = live.rise(partial(net, piece))
                known[net, piece.shape] = rise, found.shape, found.dtype
                return found
            rise, shape, dtype = known[net, piece.shape]
            live.passing(rise)
            return piece.new_empty(shape, dtype=dtype)

        starts: set[int] = set()
        with closing(self._piecewise(module, one, each)) as blocks:
            for first, _, block in blocks:
                live.passing(COPIES * block.nbytes)
                starts.add(first)
                if len(starts) > STEADY:
                    return

    def run(
        self, z: torch.Tensor, sink: Sink, checkpoint: Callable[[], None], arguments: Arguments = NO_ARGUMENTS
    ) -> None:
        """No model that has pieces takes arguments."""

        def run(one: torch.Tensor, give: Sink) -> None:
            with between_layers(checkpoint), closing(self._piecewise(self._module, one, _run)) as blocks:
                for block in blocks:
                    give(*block)

        _one_by_one(z, sink, run)


class Apart:
    """Runs another executor on one picture or video of a batch after the other, so its memory does not grow with it."""

    exact = True

    def __init__(self, inner: Executor) -> None:
        self._inner, self.name = inner, inner.name

    def suits(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        return shape[0] > 1 and self._inner.suits(shape, dtype)

    def peak_bytes(self, shape: tuple[int, ...], dtype: torch.dtype, output: int) -> int | None:
        return self._inner.peak_bytes((1, *shape[1:]), dtype, output + _others(shape, dtype))

    def run(
        self, z: torch.Tensor, sink: Sink, checkpoint: Callable[[], None], arguments: Arguments = NO_ARGUMENTS
    ) -> None:
        _one_by_one(z, sink, lambda one, give: self._inner.run(one, give, checkpoint, arguments))


def _others(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of the input that the prediction for the first picture or video of a batch does not count."""
    return math.prod(shape[1:]) * (shape[0] - 1) * dtype.itemsize


def _run(net: Net, piece: torch.Tensor) -> torch.Tensor:
    return net(piece)


def _one_by_one(z: torch.Tensor, sink: Sink, run: Callable[[torch.Tensor, Sink], None]) -> None:
    """Runs one picture or video after the other; the frames of each come after those of the one before."""
    done = ends = 0

    def give(first: int, row: int, block: torch.Tensor) -> None:
        nonlocal ends
        ends = max(ends, done + first + len(block))
        sink(done + first, row, block)

    for index in range(len(z)):
        run(z[index : index + 1], give)
        done = ends
