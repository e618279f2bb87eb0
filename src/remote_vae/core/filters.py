"""The convolutions of the stages as functions of windows of rows, and the precision that they multiply in.

A filter is made once for each layer; which one depends on the device and the precision.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Final

import torch
from torch.nn import functional

from remote_vae.core import four_rows, partial_sums, winograd
from remote_vae.core.four_rows import FourRows
from remote_vae.core.margin import NO_MARGIN, Margin
from remote_vae.core.stages import Convolution, Downsample, Layer, Upsample
from remote_vae.core.winograd import Form


def filter_for(
    layer: Layer, height: int, width: int, frames: int = 0, rows: int = 0
) -> "Direct | FourRows | Recombined | Doubled":
    """A function that computes rows of a layer's output from a window: the same rows of the input and their halo.

    A window begins with `lead` frames that are only read. A layer of several taps in time takes frames before them as
    zero. *Units*: height, width and frames of the whole input, and rows of a call; 0 if frames or rows are not known.
    *Shapes*: [lead+f,C,rows+halo,width] with its margin -> [f,K,rows,width], or twice or half the frames, the rows and
    the width.
    """
    if is_flat(layer, frames):
        layer = _of_one_frame(layer)
    if isinstance(layer, Upsample) and layer.in_time and frames != 1:
        return Doubled(layer, height, width, frames)
    if isinstance(layer, Convolution) and by_four_rows(layer, height, width, frames):
        return FourRows(layer, rows or height, width)
    form = form_of(layer, height, width, frames)
    if form is None or isinstance(layer, Downsample):
        return Direct(layer)
    return Recombined(layer, form, form.tiles(rows or height, width))


def lead_of(layer: Layer, frames: int) -> int:
    """How many copies of the first frame a window of all frames begins with."""
    if is_flat(layer, frames) or not layer.repeats:
        return 0
    return 1 if isinstance(layer, Upsample) and layer.in_time and frames > 1 else layer.taps - 1


def is_flat(layer: Layer, frames: int) -> bool:
    """Whether one frame needs no taps in time. In 16 bits the sum of taps that are not zero would be rounded."""
    wide = arithmetic(layer.weight.dtype, layer.weight.device).itemsize == 4
    return frames == 1 and layer.taps > 1 and (wide or not layer.repeats)


def _of_one_frame(layer: Layer) -> Layer:
    """The same for a clip of one frame, without taps in time: the frames before it are equal to it, or zero."""
    weight = layer.weight
    return replace(layer, weight=_summed(weight.unbind(2)) if layer.repeats else weight[:, :, -1])


def _summed(taps: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum of taps that read the same frame, in the precision that the device multiplies in."""
    return torch.stack(tuple(taps)).sum(0, dtype=torch.float32).to(arithmetic(taps[0].dtype, taps[0].device))


class Direct:
    """The convolution of torch's libraries, in the precision that the device multiplies in."""

    step: Final = 1  # rows that are computed together

    def __init__(self, layer: Layer) -> None:
        self._dtype = arithmetic(layer.weight.dtype, layer.weight.device)
        bias = None if layer.bias is None else layer.bias.to(self._dtype)
        self._layer = replace(layer, weight=laid_for(layer.weight.to(self._dtype)), bias=bias)

    def margin(self, rows: int, width: int) -> Margin:
        if self._layer.repeats and self._layer.halo:
            return Margin(left=1, right=1)
        return Margin(right=1) if isinstance(self._layer, Downsample) else NO_MARGIN

    @property
    def takes_whole_maps(self) -> bool:
        """Whether `of_map` can be called. On a CPU windows cost little, and all plans give the same bits."""
        layer = self._layer
        plain = layer.taps == 1 and not layer.repeats and not isinstance(layer, Downsample)
        return plain and layer.halo == 1 and not _is_cpu(layer.weight.device)

    def reads_most(self, window: torch.Tensor) -> bool:
        """Whether weights of several taps are more than what they multiply: then to read them takes the time."""
        weight = self._layer.weight
        return _is_cpu(weight.device) and self._layer.taps > 1 and weight.nbytes > window.nbytes

    def of_map(self, given: torch.Tensor) -> torch.Tensor:
        """The whole output, from the map without its halo: the library takes the rows around it as zero, too."""
        return _apply(self._layer, given.to(self._dtype), above=1).to(given.dtype)

    def __call__(self, window: torch.Tensor, rows: int, width: int, lead: int = 0) -> torch.Tensor:
        layer, given = self._layer, window.to(self._dtype)
        step = 2 if isinstance(layer, Downsample) and layer.in_time else 1
        if layer.taps == 1:
            return _apply(layer, given[lead::step]).to(window.dtype)
        if self._dtype.itemsize < 4 or self.reads_most(window):  # in 16 bits each sum would be rounded
            return _apply_in_time(layer, given, lead, step).to(window.dtype)
        found = _apply(replace(layer, weight=layer.weight[:, :, -1]), given[lead::step])
        for late in range(1, layer.taps):  # a tap reads frames that come this many before those that are computed
            first, missing = max(0, lead - late), max(0, late - lead)
            if first < len(given) - late:
                tap = replace(layer, weight=layer.weight[:, :, -1 - late], bias=None)
                found[missing:] += _apply(tap, given[first : len(given) - late : step])
        return found.to(window.dtype)

    def write(self, window: torch.Tensor, into: torch.Tensor, rows: int, width: int, lead: int) -> None:
        """Writes what a call gives into a part of a larger tensor."""
        into.copy_(self(window, rows, width, lead))


def laid_for(weight: torch.Tensor) -> torch.Tensor:
    """A kernel in the layout that its device's libraries would otherwise bring it to at every call.

    On a CPU it stays as it is: each call reorders weights anyway, and the module's own code keeps its very bits.
    """
    if weight.device.type == "cpu" or weight.ndim < 4:
        return weight
    return weight.contiguous(memory_format=torch.channels_last if weight.ndim == 4 else torch.channels_last_3d)


def _is_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


def _apply(layer: Layer, window: torch.Tensor, above: int = 0) -> torch.Tensor:
    """`above` is the number of rows of zeros that the window does not have above and below."""
    beside = 0 if layer.repeats else 1  # and of columns
    match layer:
        case Convolution() if layer.halo == 0:
            rows = functional.linear(window.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias)
            return rows.permute(0, 3, 1, 2)
        case Convolution():
            return partial_sums.convolve(window, layer.weight, layer.bias, padding=(above, beside))
        case Downsample():
            return partial_sums.convolve(window, layer.weight, layer.bias, stride=2)
        case Upsample(folded=True):
            # Each row or column of the halo makes two of output. A padding of 3 instead of 1 cuts them off.
            padding = (3 - 2 * above, 1 if beside else 3)
            return functional.conv_transpose2d(window, layer.weight, layer.bias, stride=2, padding=padding)
        case Upsample():
            doubled = functional.interpolate(window, scale_factor=2.0)
            inner = doubled if above else doubled[:, :, 1:-1] if beside else doubled[:, :, 1:-1, 1:-1]
            return partial_sums.convolve(inner, layer.weight, layer.bias, padding=(above, beside))


def _apply_in_time(layer: Layer, window: torch.Tensor, lead: int, step: int) -> torch.Tensor:
    """All taps in time at once; frames before the window are zero."""
    before = layer.taps - 1
    window = window[max(0, lead - before) :]
    if lead < before:
        window = functional.pad(window, (0, 0, 0, 0, 0, 0, before - lead, 0))
    beside = 0 if layer.repeats or isinstance(layer, Downsample) else 1
    if isinstance(layer, Upsample):
        window = functional.interpolate(window, scale_factor=2.0)[:, :, 1:-1, 1 - beside : -1 if beside == 0 else None]
    stride = (step, 2, 2) if isinstance(layer, Downsample) else (1, 1, 1)
    padding = (0, 0, beside if layer.halo else 0)
    clip = window.transpose(0, 1)[None].contiguous(memory_format=torch.channels_last_3d)
    found = functional.conv3d(clip, layer.weight, layer.bias, stride, padding)
    return found[0].transpose(0, 1).contiguous(memory_format=torch.channels_last)


class Recombined:
    """The convolution of `core.winograd`: it computes in float32, whatever precision the maps have."""

    def __init__(self, layer: Convolution | Upsample, form: Form, tiles: int) -> None:
        transposed = isinstance(layer, Upsample) and layer.folded
        self._kernel = winograd.recombine(form, layer.weight.transpose(0, 1) if transposed else layer.weight)
        self._bias = None if layer.bias is None else layer.bias.float()
        self._form, self._tiles, self.step = form, tiles, form.step

    def margin(self, rows: int, width: int) -> Margin:
        return Margin(1, 1 + -width % self._form.step, -rows % self._form.step)

    def __call__(self, window: torch.Tensor, rows: int, width: int, lead: int = 0) -> torch.Tensor:
        found = winograd.convolve(self._form, window, self._kernel, self._bias, self._tiles, lead)
        times = self._form.outputs // self._form.step
        part = found[:, :, : times * rows, : times * width]
        return found if part.shape == found.shape else part.clone()  # a view would keep the whole result alive

    def write(self, window: torch.Tensor, into: torch.Tensor, rows: int, width: int, lead: int) -> None:
        if rows % self._form.step or width % self._form.step:
            into.copy_(self(window, rows, width, lead))
        else:
            winograd.convolve(self._form, window, self._kernel, self._bias, self._tiles, lead, into)


class Doubled:
    """Upsampling in space and in time. Two frames that a frame becomes are computed from it and the frame before it.

    With taps a, b and c the first of them sees a + b and c, and the second one a and b + c.
    """

    def __init__(self, layer: Upsample, height: int, width: int, frames: int) -> None:
        once, (a, b, c) = replace(layer, in_time=False), layer.weight.unbind(2)
        dtype = arithmetic(layer.weight.dtype, layer.weight.device)
        pairs = ((_summed((a, b)), c.to(dtype)), (a.to(dtype), _summed((b, c))))
        first, second = (filter_for(replace(once, weight=torch.stack(two, 2)), height, width, frames) for two in pairs)
        self._first, self._second = first, second

    def margin(self, rows: int, width: int) -> Margin:
        return self._first.margin(rows, width)

    def __call__(self, window: torch.Tensor, rows: int, width: int, lead: int = 0) -> torch.Tensor:
        """A clip's first frame, whose copy the window begins with, becomes one frame."""
        second = self._second(window, rows, width, lead)
        found = second.new_empty(2 * len(second) - 1, *second.shape[1:]).contiguous(memory_format=torch.channels_last)
        found[::2] = second
        del second
        found[1::2] = self._first(window[lead:], rows, width, 1)
        return found


def form_of(layer: Layer, height: int, width: int, frames: int = 1, device: torch.device | None = None) -> Form | None:
    """The algorithm for a layer if one is faster than the direct form, which is so only in float32 on some CPUs."""
    weight, device = layer.weight, device or layer.weight.device
    if device.type != "cpu" or arithmetic(weight.dtype, device) is not torch.float32:
        return None
    match layer:
        case Convolution() if layer.halo == 1:
            form = winograd.CONVOLUTION
        case Upsample():
            form = winograd.FOLDED_UPSAMPLING if layer.folded else winograd.UPSAMPLING
        case _:
            return None
    pixels, taps = height * width * max(1, frames), 1 if is_flat(layer, frames) else layer.taps
    return form if winograd.pays(form, weight.shape[0], weight.shape[1], pixels, taps) else None


def by_four_rows(layer: Layer, height: int, width: int, frames: int, device: torch.device | None = None) -> bool:
    """Whether `core.four_rows` computes a layer, which it does in float32 on most CPUs."""
    weight, device = layer.weight, device or layer.weight.device
    if device.type != "cpu" or arithmetic(weight.dtype, device) is not torch.float32:
        return False
    one_tap = isinstance(layer, Convolution) and layer.halo == 1 and (layer.taps == 1 or is_flat(layer, frames))
    return one_tap and four_rows.pays(weight.shape[1], weight.shape[0], height * width * max(1, frames))


def arithmetic(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision to multiply in: `dtype`, or float32 on a CPU whose libraries have no fast products of that type.

    On such a CPU 16-bit products take many times as long as float32. The maps stay in 16 bits and save half the memory.
    """
    if device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) and not _multiplies(dtype):
        return torch.float32
    return dtype


@cache
def _multiplies(dtype: torch.dtype) -> bool:
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return supported is None or bool(supported())
