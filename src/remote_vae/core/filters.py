"""The convolutions of the stages as functions of windows of rows, and the precision that they multiply in.

A filter is made once for each layer; which one depends on the device and the precision.
"""

from dataclasses import replace
from functools import cache
from typing import Final, NamedTuple

import torch
from torch.nn import functional

from remote_vae.core import winograd
from remote_vae.core.stages import Convolution, Downsample, Layer, Upsample
from remote_vae.core.winograd import Form


class Margin(NamedTuple):
    """How many zero columns a filter wants beside a window, and how many zero rows below it."""

    left: int = 0
    right: int = 0
    below: int = 0


NO_MARGIN: Final = Margin()


def filter_for(layer: Layer, height: int, width: int) -> "Direct | Recombined":
    """A function that computes rows of a layer's output from a window: the same rows of the input and their halo.

    A window begins with `lead` frames that are only read. A layer of several taps in time takes frames before them as
    zero. *Units*: height and width of the whole input. *Shapes*: [lead+f,C,rows+halo,width] with its margin ->
    [f,K,rows,width], or twice or half the rows and width.
    """
    form = _form(layer, height, width)
    if form is None or isinstance(layer, Downsample):
        return Direct(layer)
    return Recombined(layer, form)


class Direct:
    """The convolution of torch's libraries, in the precision that the device multiplies in."""

    def __init__(self, layer: Layer) -> None:
        self._dtype = arithmetic(layer.weight.dtype, layer.weight.device)
        bias = None if layer.bias is None else layer.bias.to(self._dtype)
        self._layer = replace(layer, weight=layer.weight.to(self._dtype), bias=bias)

    def margin(self, rows: int, width: int) -> Margin:
        return Margin(right=1) if isinstance(self._layer, Downsample) else NO_MARGIN

    def __call__(self, window: torch.Tensor, rows: int, width: int, lead: int = 0) -> torch.Tensor:
        layer, given = self._layer, window.to(self._dtype)
        if not isinstance(layer, Convolution) or layer.taps == 1:
            return _apply(layer, given[lead:]).to(window.dtype)
        found = _apply(replace(layer, weight=layer.weight[:, :, -1]), given[lead:])
        for late in range(1, layer.taps):  # a tap reads frames that come this many before those that are computed
            first, missing = max(0, lead - late), max(0, late - lead)
            if first < len(given) - late:
                tap = replace(layer, weight=layer.weight[:, :, -1 - late], bias=None)
                found[missing:] += _apply(tap, given[first : len(given) - late])
        return found.to(window.dtype)


def _apply(layer: Layer, window: torch.Tensor) -> torch.Tensor:
    match layer:
        case Convolution() if layer.halo == 0:
            rows = functional.linear(window.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias)
            return rows.permute(0, 3, 1, 2)
        case Convolution():
            return functional.conv2d(window, layer.weight, layer.bias, padding=(0, 1))
        case Downsample():
            return functional.conv2d(window, layer.weight, layer.bias, stride=2)
        case Upsample(folded=True):
            # Each halo row makes two rows of output. A padding of 3 instead of 1 cuts them off above and below.
            return functional.conv_transpose2d(window, layer.weight, layer.bias, stride=2, padding=(3, 1))
        case Upsample():
            doubled = functional.interpolate(window, scale_factor=2.0)
            return functional.conv2d(doubled[:, :, 1:-1], layer.weight, layer.bias, padding=(0, 1))


class Recombined:
    """The convolution of `core.winograd`: it computes in float32, whatever precision the maps have."""

    def __init__(self, layer: Convolution | Upsample, form: Form) -> None:
        transposed = isinstance(layer, Upsample) and layer.folded
        self._kernel = winograd.recombine(form, layer.weight.transpose(0, 1) if transposed else layer.weight)
        self._bias = None if layer.bias is None else layer.bias.float()
        self._form = form

    def margin(self, rows: int, width: int) -> Margin:
        return Margin(1, 1 + -width % self._form.step, -rows % self._form.step)

    def __call__(self, window: torch.Tensor, rows: int, width: int, lead: int = 0) -> torch.Tensor:
        found = winograd.convolve(self._form, window, self._kernel, self._bias, lead)
        times = self._form.outputs // self._form.step
        part = found[:, :, : times * rows, : times * width]
        return found if part.shape == found.shape else part.clone()  # a view would keep the whole result alive


def _form(layer: Layer, height: int, width: int) -> Form | None:
    """The algorithm for a layer if one is faster than the direct form, which is so only in float32 on a CPU."""
    weight = layer.weight
    if weight.device.type != "cpu" or arithmetic(weight.dtype, weight.device) is not torch.float32:
        return None
    match layer:
        case Convolution() if layer.halo == 1:
            form = winograd.CONVOLUTION
        case Upsample():
            form = winograd.FOLDED_UPSAMPLING if layer.folded else winograd.UPSAMPLING
        case _:
            return None
    return form if winograd.pays(form, weight.shape[0], weight.shape[1], height, width) else None


def scratch_bytes(layer: Layer, height: int, width: int, rows: int, frames: int = 1) -> int:
    """Bytes that are alive while `rows` of a layer are computed, beside the window and the result.

    *Units*: height, width and rows of the input; frames of the window.
    """
    form, weight = _form(layer, height, width), layer.weight
    channels = weight.shape[0 if isinstance(layer, Upsample) and layer.folded else 1]
    taps = layer.taps if isinstance(layer, Convolution) else 1
    if form is not None:
        tiles = -(-rows // form.step) * -(-width // form.step)
        cropped = rows % form.step or width % form.step
        uncropped = frames * tiles * form.outputs**2 * layer.channels * weight.element_size() if cropped else 0
        return winograd.scratch_bytes(form, channels, layer.channels, tiles, taps, frames) + uncropped
    larger = {Upsample: 4.0, Downsample: 0.25}.get(type(layer), 1.0)
    found = int(frames * rows * width * larger * layer.channels)
    if arithmetic(weight.dtype, weight.device) is weight.dtype:
        return 0 if taps == 1 else found * weight.element_size()
    return 4 * (weight.numel() + frames * rows * width * channels + found * min(taps, 2))


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


# Which taps of the 3x3 kernel fall on one source row, for the four rows of the folded kernel.
_TAPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def fold(weight: torch.Tensor) -> torch.Tensor:
    """Folds nearest-neighbour upsampling by 2 and a 3x3 convolution into one transposed convolution.

    The result is exact apart from rounding; stride is 2 and padding 1. An output pixel sees two rows and two columns of
    the source, so the nine taps fall on four.
    *Shapes*: [out,in,3,3] -> [in,out,4,4].
    """
    taps = torch.tensor(_TAPS, device=weight.device)
    folded = torch.einsum("ya,oiab,xb->ioyx", taps, weight.float(), taps)
    return folded.to(weight.dtype).contiguous(memory_format=torch.channels_last)
