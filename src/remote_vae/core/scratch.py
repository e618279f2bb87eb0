"""What the filter of a layer holds beside its windows and results, for the predictions of steps."""

from typing import NamedTuple

from remote_vae.core import four_rows, partial_sums, winograd
from remote_vae.core.filters import arithmetic, by_four_rows, form_of, is_flat, lead_of
from remote_vae.core.stages import Downsample, Layer, Upsample


class Scratch(NamedTuple):
    """Bytes of a filter: while it is made, of its kernel then, and of each strip at work. Strips share the kernel."""

    made: int
    kernel: int
    strip: int

    def of(self, strips: int) -> int:
        return max(self.made, self.working(strips))

    def working(self, strips: int) -> int:
        return self.kernel + strips * self.strip


def scratch_of(layer: Layer, height: int, width: int, rows: int, frames: int = 1) -> Scratch:
    """*Units*: height, width, rows of a strip and frames of the input."""
    form, weight = form_of(layer, height, width, frames), layer.weight
    channels = weight.shape[0 if isinstance(layer, Upsample) and layer.folded else 1]
    taps = 1 if is_flat(layer, frames) else layer.taps
    kernel = 0 if taps == layer.taps else weight.nbytes // layer.taps  # the sum of the taps
    result = 0
    if isinstance(layer, Upsample) and layer.in_time and frames > 1:  # two kernels of two taps, and half of the result
        taps, kernel = 4, 4 * weight.nbytes // 3
        result = 4 * frames * rows * width * layer.channels * weight.element_size()
    read = frames + (layer.taps - 1 if taps == layer.taps else lead_of(layer, frames))
    frames += lead_of(layer, frames)
    if by_four_rows(layer, height, width, frames):
        made, kept = (count(channels, layer.channels) for count in (four_rows.made_bytes, four_rows.kernel_bytes))
        return Scratch(kernel + made, kernel + kept, four_rows.block_bytes(channels, layer.channels, rows, width))
    if form is not None:
        tiles, cropped = form.tiles(rows, width), rows % form.step or width % form.step
        result += frames * tiles * form.outputs**2 * layer.channels * weight.element_size() if cropped else 0
        block = winograd.block_bytes(form, channels, layer.channels, form.tiles(height, width), read)
        size = form, layer.channels, channels, taps
        return Scratch(kernel + winograd.made_bytes(*size), kernel + winograd.kernel_bytes(*size), block + result)
    larger, dtype = {Upsample: 4.0, Downsample: 0.25}.get(type(layer), 1.0), arithmetic(weight.dtype, weight.device)
    found, given = int(frames * rows * width * larger * layer.channels), frames * rows * width * channels
    parts = partial_sums.parts_of(weight, dtype, weight.device)
    sums = partial_sums.values_beside(parts, given * (4 if isinstance(layer, Upsample) else 1), found)
    if dtype is weight.dtype:
        return Scratch(0, kernel, result + (sums + (0 if taps == 1 else found)) * weight.element_size())
    return Scratch(0, kernel + 4 * weight.numel(), result + 4 * (given + sums + found * min(taps, 2)))
