"""3x3 convolutions with fewer multiplications, as three matrix products.

Rows and columns of a tile of the input are recombined, multiplied by a kernel that is recombined too, and recombined
again into a tile of the output: Y = A (G g G' * B' d B) A'. The product * multiplies value by value; over all channels
it is a matrix product for each value. So 4x4 pixels take 36 multiplications instead of 144, and 2x2 pixels of a map
that is upsampled first take 9 instead of 36 (16 with a folded kernel). *Source*: Winograd, Arithmetic Complexity of
Computations (1980); Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015). The interpolation points
of the first form are 0, 1, -1, 1/2, -2 and infinity; `benchmarks/convolutions.py` measures how it rounds.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

import torch

BLOCK_BYTES: Final = 4 * 2**20  # of a block's recombined input, which must stay in the cache until it is multiplied


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
# The same algorithm for the taps of `core.filters.fold`, whose rows are c, b + c, a + b and a of a kernel's a, b and c.
_FOLDED_TAPS = torch.tensor(((0.0, 0.0, 0.0, 1.0), (0.0, 1.0, 0.0, 1.0), (1.0, 0.0, 0.0, 0.0)))
FOLDED_UPSAMPLING: Final = Form(_PIXEL, _FOLDED_TAPS, _PAIR, 1, 256)


def recombine(form: Form, weight: torch.Tensor) -> torch.Tensor:
    """Recombines a kernel. *Shapes*: [out,in,k,k] -> [1,p*p,in,out], or [out,in,t,k,k] -> [t,p*p,in,out]; float32."""
    weight = weight.unsqueeze(2) if weight.ndim == 4 else weight
    taps = weight.permute(2, 3, 4, 1, 0).reshape(len(weight[0, 0]), form.taps.shape[1] ** 2, -1).float()
    return (torch.kron(form.taps, form.taps) @ taps).view(len(taps), -1, weight.shape[1], weight.shape[0])


def convolve(
    form: Form, window: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, lead: int = 0
) -> torch.Tensor:
    """Convolves every tile of a window, in blocks that stay in the cache; sums are in float32.

    A kernel of several taps also sums over as many frames, of which the last one is the frame that is computed. The
    window begins with `lead` frames that are only read; frames before them are zero and cost nothing.
    *Shapes*: window [lead+f,C,step*t+n-step,...], channels last -> [f,K,m*t,...] in the window's dtype, channels last.
    """
    channels, after = kernel.shape[2:]
    tiles = window.permute(0, 2, 3, 1).unfold(1, form.inputs, form.step).unfold(2, form.inputs, form.step)
    given, height, width = tiles.shape[:3]
    frames = given - lead
    result = window.new_empty(frames, height, form.outputs, width, form.outputs, after)
    mix, unmix = torch.kron(form.tile, form.tile), torch.kron(form.found, form.found)
    most = block_tiles(form, channels, after, given)
    across = min(width, most)
    down = max(1, most // across)

    def block(given: torch.Tensor, into: torch.Tensor) -> None:
        rows, columns = given.shape[1:3]
        values = given.permute(4, 5, 0, 1, 2, 3).reshape(form.inputs**2, -1).float()
        mixed = (mix @ values).view(form.products**2, -1, channels)
        del values
        multiplied = _multiplied(mixed, kernel, rows * columns, lead).view(form.products**2, -1)
        del mixed
        found = (unmix @ multiplied).view(form.outputs, form.outputs, frames, rows, columns, after)
        into.copy_((found if bias is None else found.add_(bias)).permute(2, 3, 0, 4, 1, 5))

    for top in range(0, height, down):
        for left in range(0, width, across):
            rows, columns = slice(top, top + down), slice(left, left + across)
            block(tiles[:, rows, columns], result[:, rows, :, columns])
    return result.view(frames, height * form.outputs, width * form.outputs, after).permute(0, 3, 1, 2)


def _multiplied(mixed: torch.Tensor, kernel: torch.Tensor, tiles: int, lead: int) -> torch.Tensor:
    """The sum of the products of all taps. *Shapes*: [p*p,(lead+f)*tiles,C] -> [p*p,f*tiles,K]."""
    found = torch.bmm(mixed[:, lead * tiles :], kernel[-1])
    for late in range(1, len(kernel)):  # a tap reads frames that come this many before those that are computed
        first, missing = max(0, lead - late), max(0, late - lead)
        last = mixed.shape[1] - late * tiles
        if first * tiles < last:
            found[:, missing * tiles :].baddbmm_(mixed[:, first * tiles : last], kernel[-1 - late])
    return found


def block_tiles(form: Form, channels: int, after: int, frames: int = 1) -> int:
    """How many tiles of every frame are multiplied at a time."""
    return max(-(-32 // frames), BLOCK_BYTES // (4 * form.products**2 * max(channels, after) * frames))


@cache
def vectors_are_wide() -> bool:
    """Whether the CPU's libraries multiply 16 floats at a time. Then they wait for memory if products are saved."""
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def pays(form: Form, channels: int, after: int, pixels: int, taps: int = 1) -> bool:
    """Whether this is faster than the direct form. *Units*: pixels of the input."""
    kernels = 1 if taps == 1 else 2 * taps  # several are read for each block
    enough = form.least_pixels_per_channel * max(channels, after) * kernels
    return min(channels, after) >= form.least_channels and pixels >= enough


def scratch_bytes(form: Form, channels: int, after: int, tiles: int, taps: int = 1, frames: int = 1) -> int:
    """Bytes beside the window and the result. *Units*: tiles of each frame, and frames of the window."""
    return kernel_bytes(form, after, channels, taps) + block_bytes(form, channels, after, tiles, frames)


def kernel_bytes(form: Form, after: int, channels: int, taps: int = 1) -> int:
    """Bytes of a recombined kernel."""
    return 4 * taps * form.products**2 * channels * after


def block_bytes(form: Form, channels: int, after: int, tiles: int, frames: int = 1) -> int:
    """Bytes of the two largest steps of a block."""
    block = frames * min(tiles, block_tiles(form, channels, after, frames))
    mixed, multiplied = form.products**2 * channels, form.products**2 * after
    steps = (form.inputs**2 * channels + mixed, mixed + multiplied, multiplied + form.outputs**2 * after)
    return 4 * block * max(steps)
