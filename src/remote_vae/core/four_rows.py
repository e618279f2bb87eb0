"""3x3 convolutions with half of the multiplications: four rows at a time.

Six rows of the input are recombined, each of the six sums is convolved along its columns by a kernel that is recombined
too, and four rows of the output are sums of the six products. `core.winograd` recombines columns as well, which halves
the multiplications once more, but libraries multiply whole rows faster, fewer sums are made, the kernel is half as
large, and it rounds less. So this is as fast for many channels and faster for few. The matrices are those of its form.
"""

from typing import Final

import torch

from remote_vae.core.margin import NO_MARGIN, Margin
from remote_vae.core.products import DILATION, STRIDE, packs
from remote_vae.core.stages import Convolution
from remote_vae.core.winograd import CONVOLUTION

BLOCK_BYTES: Final = 5 * 2**19  # of the sums that are convolved at a time
LEAST_CHANNELS: Final = 64  # with fewer, recombining maps costs as much as it saves
LEAST_PIXELS_PER_CHANNEL: Final = 4  # with fewer, recombining the kernel does
BIASED: Final = 1  # the product that is a part of all four rows: the bias is added to it

_TILE, _TAPS, _FOUND = CONVOLUTION.tile, CONVOLUTION.taps, CONVOLUTION.found
_SUMS: Final = CONVOLUTION.products


class FourRows:
    """The convolution of a layer of one tap in time, in float32. *Units*: `rows` of a call."""

    step: Final = CONVOLUTION.step  # rows that are computed together

    def __init__(self, layer: Convolution, rows: int, width: int) -> None:
        self._margin = Margin(1, 1) if layer.repeats else NO_MARGIN
        self._padding = (0, 0 if layer.repeats else 1)
        self._channels = layer.channels
        self._bias = None if layer.bias is None else layer.bias.float()
        before = layer.weight.shape[1]
        taps = layer.weight.float().permute(2, 0, 1, 3).flatten(1)
        shape = (1, before, _tiles(before, layer.channels, rows, width), width + sum(self._margin))
        pack = torch.ops.mkldnn._reorder_convolution_weight
        self._kernels = [
            pack((row @ taps).view(layer.channels, before, 1, 3), self._padding, STRIDE, DILATION, 1, shape)
            for row in _TAPS
        ]

    def margin(self, rows: int, width: int) -> Margin:
        return self._margin

    def __call__(self, window: torch.Tensor, rows: int, width: int, lead: int = 0) -> torch.Tensor:
        shape = (len(window) - lead, self._channels, rows, width)
        found = torch.empty(shape, dtype=window.dtype, memory_format=torch.channels_last)
        self.write(window, found, rows, width, lead)
        return found

    def write(self, window: torch.Tensor, into: torch.Tensor, rows: int, width: int, lead: int) -> None:
        """Writes what a call gives into a part of a larger tensor."""
        many = self.step * _tiles(window.shape[1], self._channels, rows, width)
        for given, found in zip(window[lead:], into, strict=True):
            for start in range(0, rows, many):
                some = given[:, start : start + many + 2].permute(1, 2, 0)
                self._compute(some, found[:, start : start + many].permute(1, 2, 0))

    def _compute(self, given: torch.Tensor, into: torch.Tensor) -> None:
        """Rows that the last tile lacks are not computed. *Shapes*: [rows+2,W,C], [rows,W,K]."""
        starts = range(0, len(into), self.step)
        sums = torch.empty(_SUMS, len(starts), *given.shape[1:])
        for tile, start in enumerate(starts):
            rows = given[start : start + CONVOLUTION.inputs].flatten(1).float()
            torch.mm(_TILE[:, : len(rows)], rows, out=sums[:, tile].flatten(1))
        products = torch.zeros(_SUMS, len(starts), *into.shape[1:])
        for index, (some, product) in enumerate(zip(sums, products, strict=True)):
            self._multiply(some, index, product)
        del sums, some
        for tile, start in enumerate(starts):
            rows = into[start : start + self.step].flatten(1)
            found, several = _FOUND[: len(rows)], products[:, tile].flatten(1)
            if rows.dtype is torch.float32:
                torch.mm(found, several, out=rows)
            else:
                rows.copy_(found @ several)

    def _multiply(self, given: torch.Tensor, index: int, into: torch.Tensor) -> None:
        """Adds a product. *Shapes*: [tiles,W,C], [tiles,W,K]."""
        bias = self._bias if index == BIASED else None
        rows, found = (values.permute(2, 0, 1).unsqueeze(0) for values in (given, into))
        how: tuple[object, ...] = (bias, self._padding, STRIDE, DILATION, 1, "add", 1.0, None, [], "")
        torch.ops.mkldnn._convolution_pointwise_.binary(found, rows, self._kernels[index], *how)


def pays(channels: int, after: int, pixels: int) -> bool:
    """Whether this is faster than other forms. *Units*: pixels of the input."""
    enough = LEAST_PIXELS_PER_CHANNEL * max(channels, after)
    return packs() and min(channels, after) >= LEAST_CHANNELS and pixels >= enough


def kernel_bytes(channels: int, after: int) -> int:
    return 4 * 3 * _SUMS * channels * after


def made_bytes(channels: int, after: int) -> int:
    """Bytes of a kernel while it is made, with the weights and one of the recombined rows beside it."""
    return kernel_bytes(channels, after) + 4 * (3 + 1) * 3 * channels * after


def block_bytes(channels: int, after: int, rows: int, width: int) -> int:
    """Bytes beside the window and the result. *Units*: rows of a call."""
    return 4 * _SUMS * _tiles(channels, after, rows, width) * width * (channels + after)


def _tiles(channels: int, after: int, rows: int, width: int) -> int:
    """How many tiles are convolved at a time."""
    return min(-(-rows // CONVOLUTION.step), max(1, BLOCK_BYTES // (4 * _SUMS * width * max(channels, after))))
