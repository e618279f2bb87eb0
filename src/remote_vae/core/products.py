"""Matrix products of rows with matrices that are kept in the layout which the CPU's library multiplies fastest.

Torch multiplies float32 matrices with MKL, which on AMD's CPUs uses vectors of 8 floats and reaches less than half of
their rate. oneDNN, which torch uses for convolutions, uses all of their vectors, and sums over taps in the same pass.
`benchmarks/convolutions.py` measures both.
"""

from collections.abc import Callable, Iterator
from functools import cache
from threading import Lock
from typing import Final

import torch

PADDING, STRIDE, DILATION, GROUPS = (0, 0), (1, 1), (1, 1), 1
MOST_IN_A_SUM: Final = 256  # products that are added one after another; longer sums are rounded more


class Matrices:
    """Several matrices for each of several taps. `made` gives them once. *Shapes*: each [t,in,out]; float32."""

    def __init__(self, made: Callable[[], Iterator[torch.Tensor]], taps: int, before: int, after: int) -> None:
        self._made, self.taps, self.before, self.after = made, taps, before, after
        self.parts = -(-before // MOST_IN_A_SUM)
        if before % self.parts:
            self.parts = 1
        self._kept: list[list[torch.Tensor]] = []
        self._lock = Lock()

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Each frame of the result is a sum over `t` frames, and over `parts` of the channels.

        The first call packs the matrices for as many frames and rows. More or fewer take more time.
        *Shapes*: [p,parts,t-1+f,rows,in/parts] -> [p,f,rows,out].
        """
        count, _, given, rows, channels = frames.shape
        with self._lock:
            if not self._kept:
                self._kept = [self._packed(matrices, (1, channels, given, rows)) for matrices in self._made()]
        found = frames.new_empty(count, given - self.taps + 1, rows, self.after)
        for several, kept, into in zip(frames, self._kept, found, strict=True):
            for index, (part, matrices) in enumerate(zip(several, kept, strict=True)):
                _multiply(part, matrices, into, beta=min(index, 1))
        return found

    def _packed(self, matrices: torch.Tensor, shape: tuple[int, ...]) -> list[torch.Tensor]:
        parts = matrices.chunk(self.parts, 1)
        return [_packed(part, shape) for part in parts] if packs() else list(parts)


@cache
def packs() -> bool:
    """Whether torch's library for this CPU multiplies float32 with matrices that were packed for it."""
    wide = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return wide and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def _packed(matrices: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """*Shapes*: [t,in,out] -> a kernel of t x 1 taps, for an input of a shape."""
    weight = matrices.permute(2, 1, 0).unsqueeze(-1).contiguous(memory_format=torch.channels_last)
    pack = torch.ops.mkldnn._reorder_convolution_weight
    found: torch.Tensor = pack(weight, PADDING, STRIDE, DILATION, GROUPS, shape)
    return found


def _multiply(frames: torch.Tensor, matrices: torch.Tensor, found: torch.Tensor, beta: int) -> None:
    """Adds to `beta` times what was found. *Shapes*: [t-1+f,rows,in] -> [f,rows,out]."""
    if matrices.is_mkldnn:
        given, convolve = frames.unsqueeze(0).permute(0, 3, 1, 2), torch.ops.mkldnn._convolution_pointwise
        product = convolve(given, matrices, None, PADDING, STRIDE, DILATION, GROUPS, "none", [], "")[0].permute(1, 2, 0)
        found.add_(product) if beta else found.copy_(product)
        return
    into = found.flatten(0, 1)
    for tap, matrix in enumerate(matrices):
        into.addmm_(frames[tap : tap + len(found)].flatten(0, 1), matrix, beta=max(beta, min(tap, 1)))
