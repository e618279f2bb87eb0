"""Matrix products of rows with matrices that are kept in the layout which the CPU's library multiplies fastest.

Torch multiplies float32 matrices with MKL, which on AMD's CPUs uses vectors of 8 floats and reaches less than half of
their rate. oneDNN, which torch uses for convolutions, uses all of their vectors, and sums over taps in the same pass.
`benchmarks/convolutions.py` measures both.
"""

from collections.abc import Callable
from functools import cache
from itertools import count
from threading import Lock
from typing import Final

import torch

PADDING, STRIDE, DILATION = (0, 0), (1, 1), (1, 1)
MOST_IN_A_SUM: Final = 256  # products that are added one after another; longer sums are rounded more


class Matrices:
    """Rows of matrices for each of several taps; `made` gives a row. *Shapes*: each [p,out,in,t]; float32."""

    def __init__(self, made: Callable[[int], torch.Tensor], rows: int, taps: int, before: int, after: int) -> None:
        self._made, self.taps, self.before, self.after = made, taps, before, after
        self.parts = -(-before // MOST_IN_A_SUM)
        if before % self.parts:
            self.parts = 1
        self._kept: list[list[torch.Tensor]] = [[] for _ in range(rows)]
        self._locks = [Lock() for _ in range(rows)]
        self._begun = count()

    def order(self) -> list[int]:
        """The numbers of all rows; every second caller begins in the middle, so that two cores make different rows."""
        rows, half = len(self._kept), len(self._kept) // 2 * (next(self._begun) % 2)
        return [*range(half, rows), *range(half)]

    def __call__(self, index: int, frames: torch.Tensor) -> torch.Tensor:
        """The products with a row of matrices. Each frame is a sum over `t` frames, and over `parts` of the channels.

        A row's first call packs its matrices for as many frames and rows. More or fewer take more time.
        *Shapes*: [parts,t-1+f,rows,p,in/parts] -> [f,rows,p,out].
        """
        with self._locks[index]:
            if not self._kept[index]:
                self._kept[index] = self._packed(self._made(index), frames.shape)
        multiplied = convolved if packs() else _multiplied
        found: torch.Tensor | None = None
        for part, matrices in zip(frames, self._kept[index], strict=True):
            found = multiplied(part, matrices, found)
        assert found is not None  # there is at least one part
        return found

    def _packed(self, matrices: torch.Tensor, shape: tuple[int, ...]) -> list[torch.Tensor]:
        pack = packed if packs() else _laid
        return [pack(part, shape) for part in matrices.chunk(self.parts, 2)]


@cache
def packs() -> bool:
    """Whether torch's library for this CPU multiplies float32 with matrices that were packed for it."""
    wide = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return wide and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def packed(matrices: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """*Shapes*: [p,out,in,t] -> kernels of t x 1 taps, one for each group of channels of an input of a shape."""
    weight = matrices.flatten(0, 1).unsqueeze(-1)
    _, frames, rows, groups, channels = shape
    pack = torch.ops.mkldnn._reorder_convolution_weight
    found: torch.Tensor = pack(weight, PADDING, STRIDE, DILATION, groups, (1, groups * channels, frames, rows))
    return found


def _laid(matrices: torch.Tensor, _: tuple[int, ...]) -> torch.Tensor:
    """*Shapes*: [p,out,in,t] -> [t,p,in,out]."""
    return matrices.permute(3, 0, 2, 1).contiguous()


def convolved(frames: torch.Tensor, matrices: torch.Tensor, found: torch.Tensor | None) -> torch.Tensor:
    """Adds to what was found. *Shapes*: [t-1+f,rows,p,in] -> [f,rows,p,out]."""
    groups = frames.shape[2]
    given = frames.flatten(2).permute(2, 0, 1).unsqueeze(0)
    how = (None, PADDING, STRIDE, DILATION, groups)
    if found is None:
        product: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(given, matrices, *how, "none", [], "")
        return product[0].permute(1, 2, 0).view(-1, frames.shape[1], groups, len(matrices) // groups)
    into = found.flatten(2).permute(2, 0, 1).unsqueeze(0)
    torch.ops.mkldnn._convolution_pointwise_.binary(into, given, matrices, *how, "add", 1.0, None, [], "")
    return found


def _multiplied(frames: torch.Tensor, matrices: torch.Tensor, found: torch.Tensor | None) -> torch.Tensor:
    """Adds to what was found. *Shapes*: [t-1+f,rows,p,in], [t,p,in,out] -> [f,rows,p,out]."""
    count = len(frames) - len(matrices) + 1
    for tap, several in enumerate(matrices):
        given = frames[tap : tap + count].flatten(0, 1).transpose(0, 1)
        if found is None:
            found = torch.bmm(given, several).transpose(0, 1).view(count, -1, *several.shape[::2])
        else:
            found.flatten(0, 1).transpose(0, 1).baddbmm_(given, several)
    assert found is not None  # there is at least one tap
    return found
