"""3x3 convolutions with fewer multiplications, as three matrix products.

Rows and columns of a tile of the input are recombined, multiplied by a kernel that is recombined too, and recombined
again into a tile of the output: Y = A (G g G' * B' d B) A'. The product * multiplies value by value; over all channels
it is a matrix product for each value. So 4x4 pixels take 36 multiplications instead of 144, and 2x2 pixels of a map
that is upsampled first take 9 instead of 36 (16 with a folded kernel). *Source*: Winograd, Arithmetic Complexity of
Computations (1980); Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015). The interpolation points
of the first form are 0, 1, -1, 1/2, -2 and infinity; `benchmarks/convolutions.py` measures how it rounds.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch

from remote_vae.core.products import Matrices

BLOCK_BYTES: Final = 2 * 2**20  # of a block's recombined input, which must stay in the cache until it is multiplied
Part = tuple[slice, slice, slice]  # tiles of a block, and their rows and columns
WIDE_CHANNELS: Final = 2  # times as many channels are needed if the CPU multiplies 16 floats at a time


@dataclass(frozen=True, slots=True)
class Form:
    """The matrices of one algorithm; `step` is the distance between two tiles of the input.

    `least_channels`: with fewer channels, recombining maps costs as much as it saves. `least_pixels_per_channel`: with
    fewer pixels for each channel, recombining the kernel does.
    *Shapes*: tile [p,n], taps [p,k], found [m,p] for n inputs, k taps, p products and m outputs along an axis.
    """

    tile: torch.Tensor
    taps: torch.Tensor
    found: torch.Tensor
    step: int
    least_channels: int
    least_pixels_per_channel: int = 0

    @property
    def inputs(self) -> int:
        return self.tile.shape[1]

    @property
    def products(self) -> int:
        return self.tile.shape[0]

    @property
    def outputs(self) -> int:
        return self.found.shape[0]

    def tiles(self, height: int, width: int) -> int:
        """How many tiles a map is made of. *Units*: height and width of the input."""
        return -(-height // self.step) * -(-width // self.step)

    def margin(self, rows: int, width: int) -> tuple[int, int, int]:
        """Zero columns to the left and to the right of a window, and zero rows below it."""
        return 1, 1 + -width % self.step, -rows % self.step


_TILE = (
    (1.0, -1.5, -2.0, 1.5, 1.0, 0.0),
    (0.0, -1.0, 0.5, 2.5, 1.0, 0.0),
    (0.0, 1.0, -2.5, 0.5, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 0.5, -1.0, -0.5, 1.0, 0.0),
    (0.0, 1.0, -1.5, -2.0, 1.5, 1.0),
)
_TAPS = (
    (1.0, 0.0, 0.0),
    (1 / 3, 1 / 3, 1 / 3),
    (-1 / 3, 1 / 3, -1 / 3),
    (-16 / 15, -8 / 15, -4 / 15),
    (1 / 15, -2 / 15, 4 / 15),
    (0.0, 0.0, 1.0),
)
_FOUND = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 0.5, -2.0, 0.0),
    (0.0, 1.0, 1.0, 0.25, 4.0, 0.0),
    (0.0, 1.0, -1.0, 0.125, -8.0, 1.0),
)
CONVOLUTION: Final = Form(torch.tensor(_TILE), torch.tensor(_TAPS), torch.tensor(_FOUND), 4, 64, 4)

# The two pixels that a pixel becomes are computed from it and its two neighbours.
_PIXEL = torch.tensor(((1.0, -1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 1.0, -1.0)))
_PAIR = torch.tensor(((1.0, 1.0, 0.0), (0.0, 1.0, -1.0)))
UPSAMPLING: Final = Form(_PIXEL, torch.tensor(((1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.0, 1.0))), _PAIR, 1, 256)
# The same algorithm for the taps of `core.fold`, whose rows are c, b + c, a + b and a of a kernel's a, b and c.
_FOLDED_TAPS = torch.tensor(((0.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0)))
FOLDED_UPSAMPLING: Final = Form(_PIXEL, _FOLDED_TAPS, _PAIR, 1, 256)


def recombine(form: Form, weight: torch.Tensor) -> Matrices:
    """Recombines a kernel. *Shapes*: [out,in,k,k] or [out,in,t,k,k] -> p rows of matrices, [p,out,in,t]; float32."""
    weight = weight.unsqueeze(2) if weight.ndim == 4 else weight

    def recombined(row: int) -> torch.Tensor:
        once = torch.zeros(form.taps.shape[1], out, given, count, device=weight.device)
        for tap, part in zip(form.taps[row].tolist(), weight.unbind(3), strict=True):
            if tap:  # added one after another, so that no copy of all weights is held
                once.add_(part.permute(3, 0, 1, 2), alpha=tap)
        return (form.taps @ once.flatten(1)).view(-1, out, given, count)

    out, given, count = weight.shape[:3]
    return Matrices(recombined, form.products, taps=count, before=given, after=out)


def convolve(
    form: Form,
    window: torch.Tensor,
    kernel: Matrices,
    bias: torch.Tensor | None,
    tiles: int,
    lead: int = 0,
    into: torch.Tensor | None = None,
) -> torch.Tensor:
    """Convolves every tile of a window, in blocks that stay in the cache; sums are in float32.

    A kernel of several taps also sums over as many frames, of which the last one is the frame that is computed. The
    window begins with `lead` frames that are only read; frames before them are zero. *Units*: `tiles` of one call.
    Every block has the same size, and the last one is filled up: a packed kernel suits one size.
    *Shapes*: window [lead+f,C,step*t+n-step,...], channels last -> `into`, or a new tensor: [f,K,m*t,...] in the
    window's dtype, channels last.
    """
    missing = kernel.taps - 1 - lead
    read = window[max(0, -missing) :].permute(0, 2, 3, 1)
    read = read.unfold(1, form.inputs, form.step).unfold(2, form.inputs, form.step).permute(4, 0, 1, 2, 5, 3)
    (height, width), frames = read.shape[2:4], len(window) - lead
    m = form.outputs
    result = window.new_empty(frames, m * height, m * width, kernel.after) if into is None else into.permute(0, 2, 3, 1)
    written = result.view(frames, height, m, width, m, -1).permute(2, 0, 1, 3, 4, 5)
    most = block_tiles(form, kernel.before, kernel.after, frames + kernel.taps - 1, tiles)
    shape = (kernel.parts, frames + kernel.taps - 1, most, form.inputs, kernel.before // kernel.parts)
    for start in range(0, height * width, most):
        parts = tuple(_parts(start, min(start + most, height * width), width))
        found = _products(form, [_gathered(read, parts, shape, max(0, missing))], kernel)
        found = (found if bias is None else found.add_(bias)).view(m, frames, most, m, -1)
        for at, rows, columns in parts:
            place = written[:, :, rows, columns]
            place.copy_(found[:, :, at].view(place.shape))
        del found
    return result.permute(0, 3, 1, 2)


def _gathered(read: torch.Tensor, parts: Iterable[Part], shape: tuple[int, ...], missing: int) -> torch.Tensor:
    """The values of some tiles, of which the channels are in parts; frames that are missing are zero.

    *Shapes*: [n,f,tiles,tiles,n,C] -> [n,parts,missing+f,tiles,n,C/parts]. Tiles that fill up a block have any values.
    """
    values = torch.empty(len(read), *shape, device=read.device)
    values[:, :, :missing] = 0
    for at, rows, columns in parts:
        given = read[:, :, rows, columns]
        into = values[:, :, missing:, at]
        into = into.view(*into.shape[:3], *given.shape[2:4], *shape[-2:])
        into.copy_(given.view(*given.shape[:5], shape[0], shape[-1]).permute(0, 5, 1, 2, 3, 4, 6))
    return values


def _products(form: Form, values: list[torch.Tensor], kernel: Matrices) -> torch.Tensor:
    """Recombines tiles, multiplies them and recombines the products. Takes the values from their list.

    The first axis is recombined for all tiles; then each of its results goes all the way through the second axis, which
    is so little at a time that it stays in the cache. *Shapes*: [n,parts,f,tiles,n,C/parts] -> [m,f*tiles*m,K].
    """
    _, parts, given, tiles, n, channels = values[0].shape
    mixed = form.tile @ values.pop().flatten(1)
    made, (m, p) = (given - kernel.taps + 1) * tiles, form.found.shape
    halfway = mixed.new_empty(p, made, m, kernel.after)
    rows = mixed.view(p, -1, n, channels)
    for index in kernel.order():
        several = torch.bmm(form.tile.expand(rows.shape[1], p, n), rows[index])
        product = kernel(index, several.view(parts, given, tiles, p, channels))
        torch.bmm(form.found.expand(made, m, p), product.flatten(0, 1), out=halfway[index])
    del mixed, rows, several, product
    return (form.found @ halfway.view(p, -1)).view(m, -1, kernel.after)


def _parts(start: int, stop: int, width: int) -> Iterator[Part]:
    """The rectangles that some tiles in reading order are made of: where each is among them, its rows, its columns."""
    at = 0
    while start < stop:
        row, column = divmod(start, width)
        rows = max(1, (stop - start) // width) if column == 0 else 1
        columns = min(width - column, stop - start)
        count = rows * columns
        yield slice(at, at + count), slice(row, row + rows), slice(column, column + columns)
        at, start = at + count, start + count


def block_tiles(form: Form, channels: int, after: int, frames: int, tiles: int) -> int:
    """How many tiles of every frame are multiplied at a time; blocks of a call are equal. *Units*: tiles of a call."""
    cached = BLOCK_BYTES // (4 * form.products**2 * max(channels, after) * frames)
    most = max(-(-32 // frames), cached)
    return -(-tiles // -(-tiles // most))


@cache
def vectors_are_wide() -> bool:
    """Whether the CPU's libraries multiply 16 floats at a time."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def pays(form: Form, channels: int, after: int, pixels: int, taps: int = 1) -> bool:
    """Whether this is faster than the direct form. *Units*: pixels of the input.

    Several taps share the recombining of the maps. Where products are faster, more of them must be saved for it.
    """
    kernels = 1 if taps == 1 else 2 * taps  # several are read for each block
    enough = form.least_pixels_per_channel * max(channels, after) * kernels
    wide = WIDE_CHANNELS if vectors_are_wide() and taps == 1 else 1
    return min(channels, after) >= wide * form.least_channels and pixels >= enough


def kernel_bytes(form: Form, after: int, channels: int, taps: int = 1) -> int:
    """Bytes of a recombined kernel."""
    return 4 * taps * form.products**2 * channels * after


def made_bytes(form: Form, after: int, channels: int, taps: int = 1) -> int:
    """Bytes of a recombined kernel while it is made: its last row of matrices lies beside the packed one then."""
    return kernel_bytes(form, after, channels, taps) * (form.products + 1) // form.products


def block_bytes(form: Form, channels: int, after: int, tiles: int, frames: int = 1) -> int:
    """Bytes of the largest step of a block."""
    n, p, m = form.inputs, form.products, form.outputs
    halfway = p * n * channels + p * (channels + after) + p * m * after
    steps = (n * n + p * n) * channels, halfway, (p * m + m * m) * after  # values for each tile, step by step
    return 4 * frames * block_tiles(form, channels, after, frames, tiles) * max(steps)
