"""What a filter holds, without its values: for runs on meta tensors, which tell how much memory a run will take."""

import torch

from remote_vae.core import pairs, partial_sums, winograd
from remote_vae.core.filters import NO_MARGIN, Direct, Margin, Recombined, arithmetic, filter_for, form_of
from remote_vae.core.pairs import Paired
from remote_vae.core.stages import Convolution, Downsample, Layer, Upsample
from remote_vae.core.sweep import share_of


class Account:
    """Stands for the filter of a layer on another device, and allocates as many bytes as all its workers."""

    def __init__(
        self,
        layer: Layer,
        height: int,
        width: int,
        device: torch.device,
        workers: int,
        rows: int = 0,
        frames: int = 0,
        *,
        lean: bool = False,
    ) -> None:
        self._workers = workers
        self._layer = layer
        self._pairs = not lean and pairs.pays(layer, frames, height, width, device)
        self._form = None if lean or self._pairs else form_of(layer, height, width, 0, device)
        self.step = 1 if self._form is None else self._form.step
        self._tiles = 0 if self._form is None else self._form.tiles(rows or height, width)
        dtype = arithmetic(layer.weight.dtype, device)
        self._wide, self._parts = dtype is not layer.weight.dtype, partial_sums.parts_of(layer.weight, dtype, device)
        self._kernel = _bytes(kernel_bytes(layer, height, width, device, frames, lean=lean))

    def margin(self, rows: int, width: int) -> Margin:
        if self._form is not None:
            return Margin(*self._form.margin(rows, width))
        if self._layer.repeats and self._layer.halo:
            return Margin(left=1, right=1)
        return Margin(right=1) if isinstance(self._layer, Downsample) else NO_MARGIN

    def __call__(self, window: torch.Tensor, rows: int, width: int, lead: int = 0) -> torch.Tensor:
        times = 2 if isinstance(self._layer, Upsample) else 1
        columns = width // 2 if isinstance(self._layer, Downsample) else times * width
        shape = (len(window) - lead, self._layer.channels, times * rows, columns)
        beside = _bytes(self._beside(window, rows, width))
        found = torch.empty(shape, dtype=window.dtype, device=window.device)
        del beside
        return found

    def write(self, window: torch.Tensor, into: torch.Tensor, rows: int, width: int, lead: int) -> None:
        if self._form is None and not self._pairs:
            into.copy_(self(window, rows, width, lead))
        else:
            _bytes(self._beside(window, rows, width))

    def _beside(self, window: torch.Tensor, rows: int, width: int) -> int:
        layer, form, given = self._layer, self._form, window.element_size()
        share = share_of(rows, self._workers, self.step)
        workers, rows = -(-rows // share), min(rows, share)  # few rows leave some without work
        frames, channels = window.shape[:2]
        if self._pairs:
            return workers * pairs.scratch_bytes(layer, window[:, :, : rows + 2])
        if form is not None:
            tiles, cropped = form.tiles(rows, width), rows % form.step or width % form.step
            whole = frames * tiles * form.outputs**2 * layer.channels * given if cropped else 0
            block = winograd.block_bytes(form, channels, layer.channels, self._tiles, frames)
            return workers * (block + whole)
        larger = {Upsample: 4.0, Downsample: 0.25}.get(type(layer), 1.0)
        found = int(workers * frames * rows * width * larger * layer.channels)
        read = workers * frames * rows * width * channels
        doubled = 4 * read if isinstance(layer, Upsample) and not layer.folded else 0
        sums = partial_sums.values_beside(self._parts, read + doubled, found)
        if not self._wide:
            return given * (doubled + sums + (0 if layer.taps == 1 else found))
        return 4 * (read + doubled + sums + found * min(layer.taps, 2))


def _bytes(count: int) -> torch.Tensor:
    """Bytes without values. `Tensor.new_empty` would take three times as long on meta."""
    return torch.empty(count, dtype=torch.uint8, device="meta")


def kernel_bytes(
    layer: Layer, height: int, width: int, device: torch.device, frames: int = 0, *, lean: bool = False
) -> int:
    """Bytes of the weights that a filter makes of those of the layer. *Units*: height and width of the whole input."""
    if not lean and pairs.pays(layer, frames, height, width, device):
        return pairs.kernel_bytes(layer)
    form, weight = None if lean else form_of(layer, height, width, 0, device), layer.weight
    if form is not None:
        return winograd.kernel_bytes(form, weight.shape[0], weight.shape[1], layer.taps)
    return 4 * weight.numel() if arithmetic(weight.dtype, device) is not weight.dtype else 0


def filter_on(
    layer: Layer,
    height: int,
    width: int,
    device: torch.device,
    workers: int,
    rows: int = 0,
    frames: int = 0,
    *,
    lean: bool = False,
) -> "Direct | Recombined | Paired | Account":
    """What computes a layer on a device, or stands for that if the layer is on meta.

    *Units*: height and width of the whole input; `workers` are those that compute rows side by side, `rows` of each;
    `frames` are computed at a time. A `lean` filter makes no kernel, which would be up to four times as large as the
    layer's.
    """
    if layer.weight.is_meta and device.type != "meta":
        return Account(layer, height, width, device, workers, rows, frames, lean=lean)
    if lean:
        return Direct(layer)
    if pairs.pays(layer, frames, height, width, device):
        assert isinstance(layer, Convolution)
        return Paired(layer, rows, width)
    found = filter_for(layer, height, width, rows=rows)
    assert isinstance(found, Direct | Recombined)
    return found
