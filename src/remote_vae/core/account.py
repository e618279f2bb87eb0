"""What a filter holds, without its values: for runs on meta tensors, which tell how much memory a run will take."""

import torch

from remote_vae.core import four_rows, pairs, partial_sums, winograd
from remote_vae.core.block import Run
from remote_vae.core.filters import Direct, Recombined, arithmetic, by_four_rows, filter_for, form_of
from remote_vae.core.four_rows import FourRows
from remote_vae.core.local_frames import Size
from remote_vae.core.margin import NO_MARGIN, Margin
from remote_vae.core.pairs import Paired
from remote_vae.core.stages import Convolution, Downsample, Layer, Upsample
from remote_vae.core.sweep import share_of


class Account:
    """Stands for the filter of a layer on another device, and allocates as many bytes as all its workers."""

    def __init__(self, layer: Layer, size: Size, run: Run, rows: int = 0) -> None:
        self._workers = run.workers
        self._layer = layer
        self._pairs, self._form = is_paired(layer, size, run), _form_of(layer, size, run)
        self._four_rows = _by_four_rows(layer, size, run)
        self.step = FourRows.step if self._four_rows else 1 if self._form is None else self._form.step
        self._tiles = 0 if self._form is None else self._form.tiles(rows or size.height, size.width)
        dtype = arithmetic(layer.weight.dtype, run.device)
        self._wide = dtype is not layer.weight.dtype
        self._parts = partial_sums.parts_of(layer.weight, dtype, run.device)
        if self._four_rows:
            _bytes(four_rows.made_bytes(*layer.weight.shape[:2]))
        kernel = kernel_bytes(layer, size, run)
        self._kernel, self._making = _bytes(kernel), 0 if self._form is None else kernel // self._form.products

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
        if self._form is None and not self._pairs and not self._four_rows:
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
        if self._four_rows:
            return workers * four_rows.block_bytes(channels, layer.channels, rows, width)
        if form is not None:
            tiles, cropped = form.tiles(rows, width), rows % form.step or width % form.step
            whole = frames * tiles * form.outputs**2 * layer.channels * given if cropped else 0
            block = winograd.block_bytes(form, channels, layer.channels, self._tiles, frames)
            making, self._making = self._making, 0  # by the first call alone
            return max(making, workers * (block + whole))
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


def kernel_bytes(layer: Layer, size: Size, run: Run) -> int:
    """Bytes of the weights that a filter makes of those of the layer."""
    if is_paired(layer, size, run):
        return pairs.kernel_bytes(layer)
    if _by_four_rows(layer, size, run):
        return four_rows.kernel_bytes(*layer.weight.shape[:2])
    form, weight = _form_of(layer, size, run), layer.weight
    if form is not None:
        return winograd.kernel_bytes(form, weight.shape[0], weight.shape[1], layer.taps)
    return 4 * weight.numel() if arithmetic(weight.dtype, run.device) is not weight.dtype else 0


def is_paired(layer: Layer, size: Size, run: Run) -> bool:
    return not run.lean and pairs.pays(layer, size.frames, size.height, size.width, run.device)


def _by_four_rows(layer: Layer, size: Size, run: Run) -> bool:
    return not run.lean and by_four_rows(layer, size.height, size.width, 0, run.device)


def _form_of(layer: Layer, size: Size, run: Run) -> winograd.Form | None:
    if run.lean or is_paired(layer, size, run) or _by_four_rows(layer, size, run):
        return None
    return form_of(layer, size.height, size.width, 0, run.device)


def filter_on(layer: Layer, size: Size, run: Run, rows: int = 0) -> "Direct | FourRows | Recombined | Paired | Account":
    """What computes a layer on the device of a run, or stands for that if the layer is on meta.

    The size is that of the whole input and of the frames that are computed at a time. *Units*: `rows` of each worker. A
    `lean` run makes no kernel, which would be up to four times as large as the layer's.
    """
    if layer.weight.is_meta and run.device.type != "meta":
        return Account(layer, size, run, rows)
    if run.lean:
        return Direct(layer)
    if is_paired(layer, size, run):
        assert isinstance(layer, Convolution)
        return Paired(layer, rows, size.width)
    found = filter_for(layer, size.height, size.width, rows=rows)
    assert isinstance(found, Direct | FourRows | Recombined)
    return found
