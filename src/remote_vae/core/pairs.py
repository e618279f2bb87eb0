"""Convolutions of three taps in time with two thirds of the multiplications: two frames at a time.

With taps a, b and c, two frames of the output read four frames of the input, d0 to d3. With
p = (d1 + d2) (a + b + c) / 2 and q = (d2 - d1) (a - b + c) / 2 they are (d0 - d2) a + p + q and p - q - (d1 - d3) c, so
four convolutions do instead of six. The kernel is four thirds as large as the layer's, where that of `core.winograd` is
four times as large, and it rounds about as a plain sum does. *Source*: Winograd, Arithmetic Complexity of Computations
(1980); `core.winograd` does the same in rows and columns.
"""

from collections.abc import Iterator
from itertools import product
from typing import Final

import torch
from torch.nn import functional

from remote_vae.core import products
from remote_vae.core.filters import arithmetic
from remote_vae.core.margin import NO_MARGIN, Margin
from remote_vae.core.stages import Convolution, Layer

TAPS: Final = 3
COPIES: Final = 3  # of what is computed at a time: a sum of frames, and two products
BLOCK_BYTES: Final = 2 * 2**20  # of the frames that are summed at a time
LEAST_CHANNELS: Final = 32  # with fewer, sums of frames take as much time as they save
LEAST_POSITIONS: Final = 4096  # with fewer, making the kernel does
MANY_POSITIONS: Final = 8192  # with so many, making the kernel takes at most a twentieth of the time


class Paired:
    """The convolution of a layer for which it `pays`, in float32. *Units*: `rows` of a call."""

    step: Final = 1  # rows that are computed together

    def __init__(self, layer: Convolution, rows: int, width: int) -> None:
        self._margin = Margin(1, 1) if layer.repeats else NO_MARGIN
        self._padding = (0, 0 if layer.repeats else 1)
        self._channels = layer.channels
        self._bias = None if layer.bias is None else layer.bias.float()
        shape = (1, layer.weight.shape[1], rows + 2, width + sum(self._margin))
        self._kernels = [self._laid(kernel, shape) for kernel in _kernels(layer.weight)]

    def margin(self, rows: int, width: int) -> Margin:
        return self._margin

    def __call__(self, window: torch.Tensor, rows: int, width: int, lead: int = 0) -> torch.Tensor:
        shape = (len(window) - lead, self._channels, rows, width)
        found = torch.empty(shape, dtype=window.dtype, memory_format=torch.channels_last)
        self.write(window, found, rows, width, lead)
        return found

    def write(self, window: torch.Tensor, into: torch.Tensor, rows: int, width: int, lead: int) -> None:
        """Writes what a call gives into a part of a larger tensor."""
        if lead < TAPS - 1:
            window = functional.pad(window, (0, 0, 0, 0, 0, 0, TAPS - 1 - lead, 0))
        some, many = rows_of(window), 2 * pairs_of(window)
        for row, start in product(range(0, rows, some), range(0, len(into), many)):
            given, target = window[start : start + many + 2], into[start : start + many]
            given, target = given[:, :, row : row + some + 2], target[:, :, row : row + some]
            if into.dtype is torch.float32:
                self._compute(given, target)
            else:
                found = torch.empty_like(target, dtype=torch.float32)
                self._compute(given.float(), found)
                target.copy_(found)

    def _compute(self, given: torch.Tensor, into: torch.Tensor) -> None:
        """An odd last frame takes three of the four products."""
        first, second, early, late = given[:-2:2], given[1:-1:2], given[2::2], given[3::2]
        both, sums = len(late), torch.empty(early.shape, memory_format=torch.channels_last)
        plus = self._product(torch.add(second, early, out=sums), 1, self._bias)
        minus = self._product(torch.sub(early, second, out=sums), 2)
        torch.add(plus, minus, out=into[::2])
        torch.sub(plus[:both], minus[:both], out=into[1::2])
        del plus, minus
        into[::2] += self._product(torch.sub(first, early, out=sums), 0)
        if both:
            into[1::2] -= self._product(torch.sub(second[:both], late, out=sums[:both]), 3)

    def _product(self, frames: torch.Tensor, index: int, bias: torch.Tensor | None = None) -> torch.Tensor:
        kernel = self._kernels[index]
        if not products.packs():
            return functional.conv2d(frames, kernel, bias, padding=self._padding)
        how: tuple[object, ...] = (self._padding, (1, 1), (1, 1), 1, "none", [], "")
        found: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(frames, kernel, bias, *how)
        return found

    def _laid(self, kernel: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """A kernel in the layout that the CPU's library wants for frames of a shape."""
        if not products.packs():
            return kernel.clone()
        pack = torch.ops.mkldnn._reorder_convolution_weight
        found: torch.Tensor = pack(kernel, self._padding, (1, 1), (1, 1), 1, shape)
        return found


def _kernels(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """The four kernels one after another, which share their memory. *Shapes*: [out,in,3,3,3] -> [out,in,3,3]."""
    a, b, c = weight.unbind(2)
    kernel = a.float().contiguous()
    yield kernel
    kernel = kernel.clone() if kernel is a else kernel
    yield kernel.add_(b).add_(c).mul_(0.5)
    yield kernel.sub_(b)
    yield kernel.copy_(c)


def pays(layer: Layer, frames: int, height: int, width: int, device: torch.device) -> bool:
    """Whether a layer is faster so, for a clip that is computed by parts of so many frames."""
    if not isinstance(layer, Convolution) or layer.taps != TAPS or layer.halo != 1 or frames < 2:
        return False
    if device.type != "cpu" or arithmetic(layer.weight.dtype, device) is not torch.float32:
        return False
    return min(layer.weight.shape[:2]) >= LEAST_CHANNELS and frames * height * width >= LEAST_POSITIONS


def kernel_bytes(layer: Layer) -> int:
    return 4 * 4 * layer.weight.numel() // TAPS


def pairs_of(window: torch.Tensor) -> int:
    """How many pairs of frames are computed at a time."""
    return max(1, BLOCK_BYTES // (4 * window[0].numel()))


def rows_of(window: torch.Tensor) -> int:
    """How many rows of a frame are computed at a time."""
    rows = window.shape[2]
    shares = -(-4 * window[0].numel() // BLOCK_BYTES)
    return -(-(rows - 2) // shares)


def scratch_bytes(layer: Layer, window: torch.Tensor) -> int:
    """Bytes beside the window and the result. *Shapes*: a window of what one core computes."""
    pairs = min(pairs_of(window), (len(window) - 1) // 2)
    channels = window.shape[1] + 2 * layer.channels
    copies = 1 if window.dtype is torch.float32 else 3
    return 4 * pairs * channels * copies * (rows_of(window) + 2) * window.shape[3]
