"""The kernels of `core.norm` and `core.root_mean_square` for CUDA devices, in Triton.

PyTorch's own GroupNorm starts one block per group, 32 on a device with over a hundred multiprocessors, and knows
channels-last maps only by copying them. A norm takes three launches here: the statistics of tiles, those of groups, and
norm and SiLU together. The sum of a residual block and the statistics of its tiles are one launch. Kernels count in
float32, and merge by the same rule as strips do. Maps are [F,C,rows,W], channels last; they may be a part of wider rows
or of more rows. Import this module only if Triton is installed.
"""

from dataclasses import dataclass
from inspect import signature
from typing import Any, Final

import torch
import triton
import triton.language as tl

from remote_vae.core import local
from remote_vae.core.norm import Groups
from remote_vae.core.stages import Norm

TILE_PIXELS: Final = 64
TILE_CHANNELS: Final = 64
TILE: Final = {"tile_pixels": TILE_PIXELS, "tile_channels": TILE_CHANNELS}
TILE_PARTS: Final = 128
MOST_PARTS: Final = 512  # blocks for a map's pixels: enough for every multiprocessor, few enough to merge
LEAST_TILES: Final = 4  # that a block takes, if there are so many
TILE_VALUES: Final = 4096  # of a tile with all channels

# Numbers that differ between pictures. Triton would compile a kernel again if one is 1, or no multiple of 16.
SIZES: Final = ("pixels", "area", "width", "steps", "parts")
STRIDES: Final = ("source_frame", "source_row", "branch_frame", "branch_row", "into_frame", "into_row")


def _compiled(function: Any) -> Any:
    names = signature(function).parameters
    return triton.jit(function, do_not_specialize=[name for name in (*SIZES, *STRIDES) if name in names])


@triton.jit
def _place(pixel, area, width, channels, frame, row):  # type: ignore[no-untyped-def]
    """Where the channels of a pixel begin, counted in values; frames and rows are so many pixels apart.

    A map may have more than 2**31 values. That all numbers are multiples of the channels is how the compiler knows that
    it may load many at once.
    """
    before = (pixel // area).to(tl.int64) * frame + (pixel % area // width).to(tl.int64) * row
    return (before + pixel % width) * channels


@_compiled
def _tile_moments(  # type: ignore[no-untyped-def]
    source, branch, bias, into, pixels, area, width, channels,
    source_frame, source_row, branch_frame, branch_row, steps,
    added: tl.constexpr, biased: tl.constexpr, gathered: tl.constexpr,
    tile_pixels: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """Mean and squared distances for one tile of channels over `steps` tiles of pixels, merged tile by tile.

    If there is a branch, it and the bias are `added` to the source first, in place, rounded once.
    """
    part = tl.program_id(0)
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    shift = tl.zeros((tile_channels,), tl.float32)
    if biased:
        shift = tl.load(bias + channel, mask=channel < channels, other=0.0)
    count = 0.0
    mean = tl.zeros((tile_channels,), tl.float32)
    spread = tl.zeros((tile_channels,), tl.float32)
    for step in range(steps):
        pixel = (part * steps + step) * tile_pixels + tl.arange(0, tile_pixels)
        inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
        place = _place(pixel, area, width, channels, source_frame, source_row)
        here = source + place[:, None] + channel[None, :]
        values = tl.load(here, mask=inside, other=0.0).to(tl.float32)
        if added:
            place = _place(pixel, area, width, channels, branch_frame, branch_row)
            values += tl.load(branch + place[:, None] + channel[None, :], mask=inside, other=0.0).to(tl.float32)
            stored = (values + shift[None, :]).to(source.dtype.element_ty)
            tl.store(here, stored, mask=inside)
            values = tl.where(inside, stored.to(tl.float32), 0.0)
        if gathered:
            new = tl.minimum(tl.maximum(pixels - (part * steps + step) * tile_pixels, 0), tile_pixels).to(tl.float32)
            new_mean = tl.sum(values, 0) / tl.maximum(new, 1.0)
            apart = tl.where(inside, values - new_mean[None, :], 0.0)
            total = tl.maximum(count + new, 1.0)
            delta = new_mean - mean
            mean += delta * (new / total)
            spread += tl.sum(apart * apart, 0) + delta * delta * (count * new / total)
            count += new
    if gathered:
        row = into + part * (2 * channels + 1)
        tl.store(row + channel, mean, mask=channel < channels)
        tl.store(row + channels + channel, spread, mask=channel < channels)
        tl.store(row + 2 * channels, count)


@_compiled
def _group_moments(  # type: ignore[no-untyped-def]
    source, offset, means, variances, parts, channels, width,
    shifted: tl.constexpr, tile_parts: tl.constexpr, tile_width: tl.constexpr,
):  # fmt: skip
    """The mean and the variance of one group of `width` channels, from all parts, for each of its channels."""
    within = tl.arange(0, tile_width)
    channel = tl.program_id(0) * width + within
    known = within < width
    shift = tl.zeros((tile_width,), tl.float32)
    if shifted:
        shift = tl.load(offset + channel, mask=known, other=0.0)
    count = 0.0
    total = 0.0
    for first in range(0, parts, tile_parts):
        part = first + tl.arange(0, tile_parts)
        row = source + part * (2 * channels + 1)
        counts = tl.load(row + 2 * channels, mask=part < parts, other=0.0)
        inside = (part < parts)[:, None] & known[None, :]
        found = tl.load(row[:, None] + channel[None, :], mask=inside, other=0.0) + shift[None, :]
        count += tl.sum(counts, 0)
        total += tl.sum(tl.sum(found * counts[:, None], 1), 0)
    mean = total / (count * width)
    spread = 0.0
    for first in range(0, parts, tile_parts):
        part = first + tl.arange(0, tile_parts)
        row = source + part * (2 * channels + 1)
        counts = tl.load(row + 2 * channels, mask=part < parts, other=0.0)
        inside = (part < parts)[:, None] & known[None, :]
        found = tl.load(row[:, None] + channel[None, :], mask=inside, other=0.0) + shift[None, :]
        apart = tl.where(inside, found - mean, 0.0)
        spreads = tl.load(row[:, None] + channels + channel[None, :], mask=inside, other=0.0)
        spread += tl.sum(tl.sum(spreads + apart * apart * counts[:, None], 1), 0)
    tl.store(means + channel, mean - shift, mask=known)
    tl.store(variances + channel, tl.zeros((tile_width,), tl.float32) + spread / (count * width), mask=known)


@_compiled
def _normalise(  # type: ignore[no-untyped-def]
    source, mean, variance, weight, bias, into, eps, pixels, area, width, channels,
    source_frame, source_row, into_frame, into_row,
    silu: tl.constexpr, tile_pixels: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """One tile of (x - mean) / sqrt(variance + eps) * weight + bias, or of SiLU of that, rounded once."""
    pixel = tl.program_id(0) * tile_pixels + tl.arange(0, tile_pixels)
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    known = channel < channels
    scale = tl.load(weight + channel, mask=known, other=0.0) * tl.rsqrt(
        tl.load(variance + channel, mask=known, other=1.0) + eps
    )
    centre = tl.load(mean + channel, mask=known, other=0.0)
    shift = tl.load(bias + channel, mask=known, other=0.0)
    inside = (pixel < pixels)[:, None] & known[None, :]
    place = _place(pixel, area, width, channels, source_frame, source_row)
    values = tl.load(source + place[:, None] + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    found = (values - centre[None, :]) * scale[None, :] + shift[None, :]
    if silu:
        found = found * tl.sigmoid(found)
    place = _place(pixel, area, width, channels, into_frame, into_row)
    tl.store(into + place[:, None] + channel[None, :], found.to(into.dtype.element_ty), mask=inside)


@_compiled
def _divide(  # type: ignore[no-untyped-def]
    source, weight, into, eps, least, pixels, area, width, channels, source_frame, source_row, into_frame, into_row,
    normed: tl.constexpr, weighted: tl.constexpr, silu: tl.constexpr,
    tile_pixels: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """All channels of some pixels, divided by their root mean square, times the weight; SiLU of that; rounded once."""
    pixel = tl.program_id(0) * tile_pixels + tl.arange(0, tile_pixels)
    channel = tl.arange(0, tile_channels)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    place = _place(pixel, area, width, channels, source_frame, source_row)
    found = tl.load(source + place[:, None] + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    if normed:
        root = tl.sqrt(tl.sum(found * found, 1) / channels + eps)
        found = found / tl.maximum(root, least)[:, None]
    if weighted:
        found = found * tl.load(weight + channel, mask=channel < channels, other=0.0)[None, :]
    if silu:
        found = found * tl.sigmoid(found)
    place = _place(pixel, area, width, channels, into_frame, into_row)
    tl.store(into + place[:, None] + channel[None, :], found.to(into.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True)
class Parts:
    """Meets `core.norm.Moments`: those of tiles, which one launch merges when a norm asks for its groups.

    *Shapes*: each part [tiles,2C+1]: the means of the channels, their squared distances, and the number of values.
    """

    parts: tuple[torch.Tensor, ...]

    def merge(self, other: "Parts") -> "Parts":
        return Parts(self.parts + other.parts)

    def of_groups(self, groups: int, offset: torch.Tensor | None = None) -> Groups:
        found = self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts)
        channels = found.shape[1] // 2
        mean, variance = torch.empty(2, channels, dtype=torch.float32, device=found.device).unbind()
        width = channels // groups
        tile = triton.next_power_of_2(width)
        parts = max(1, TILE_PARTS * TILE_CHANNELS // max(tile, TILE_CHANNELS))
        _group_moments[(groups,)](
            found, found if offset is None else offset, mean, variance, len(found), channels, width,
            shifted=offset is not None, tile_parts=parts, tile_width=tile,
        )  # fmt: skip
        return mean, variance


class Triton:
    """Meets `core.norm.Kernels`."""

    def moments(self, strip: torch.Tensor) -> Parts:
        return _tiles(_dense(strip))

    def add(
        self, into: torch.Tensor, branch: torch.Tensor, bias: torch.Tensor | None, *, measured: bool
    ) -> Parts | None:
        """In one launch with the statistics."""
        if not _is_dense(into):
            self.add(dense := _dense(into), branch, bias, measured=False)
            return self.moments(into.copy_(dense)) if measured else None
        found = _tiles(into, _dense(branch), bias, measured=measured)
        return found if measured else None

    def normalise(self, source: torch.Tensor, into: torch.Tensor, norm: Norm, of_groups: Groups, *, silu: bool) -> None:
        if not _is_dense(into):
            self.normalise(source, found := _like(into), norm, of_groups, silu=silu)
            into.copy_(found)
            return
        source = _dense(source)
        pixels, area, width, channels, *strides = _sizes(source)
        sizes = (pixels, area, width, channels, *strides, *_sizes(into)[4:])
        grid = (triton.cdiv(pixels, TILE_PIXELS), triton.cdiv(channels, TILE_CHANNELS))
        _normalise[grid](source, *of_groups, norm.weight, norm.bias, into, norm.eps, *sizes, silu=silu, **TILE)


def divide(source: torch.Tensor, into: torch.Tensor, norm: local.Norm | None, least: float, *, silu: bool) -> None:
    """The norm of `core.root_mean_square`, for all frames in one launch."""
    if not _is_dense(into):
        divide(source, found := _like(into), norm, least, silu=silu)
        into.copy_(found)
        return
    source = _dense(source)
    pixels, area, width, channels, *strides = _sizes(source)
    sizes = (pixels, area, width, channels, *strides, *_sizes(into)[4:])
    tile = triton.next_power_of_2(channels)
    each = max(1, TILE_VALUES // tile)
    weight = None if norm is None else norm.weight
    _divide[(triton.cdiv(pixels, each),)](
        source, source if weight is None else weight, into, 0.0 if norm is None else norm.eps, least, *sizes,
        normed=norm is not None, weighted=weight is not None, silu=silu, tile_pixels=each, tile_channels=tile,
    )  # fmt: skip


def _tiles(
    strip: torch.Tensor, branch: torch.Tensor | None = None, bias: torch.Tensor | None = None, *, measured: bool = True
) -> Parts:
    """The statistics of a strip, after a branch and a bias have been added if there are any."""
    pixels, area, width, channels, *strides = _sizes(strip)
    strides += strides if branch is None else _sizes(branch)[4:]
    tiles = triton.cdiv(pixels, TILE_PIXELS)
    steps = max(min(tiles, LEAST_TILES), triton.cdiv(tiles, MOST_PARTS))
    parts = triton.cdiv(tiles, steps)
    found = torch.empty(parts if measured else 0, 2 * channels + 1, dtype=torch.float32, device=strip.device)
    _tile_moments[parts, triton.cdiv(channels, TILE_CHANNELS)](
        strip, strip if branch is None else branch, strip if bias is None else bias, found,
        pixels, area, width, channels, *strides, steps,
        added=branch is not None, biased=bias is not None, gathered=measured, **TILE,
    )  # fmt: skip
    return Parts((found,))


def _sizes(strip: torch.Tensor) -> tuple[int, int, int, int, int, int]:
    """Pixels of all frames and of one, the width, the channels, and by how many pixels frames and rows are apart."""
    frames, channels, rows, width = strip.shape
    apart = strip.stride(0) // channels, strip.stride(2) // channels
    return frames * rows * width, rows * width, width, channels, *apart


def _is_dense(strip: torch.Tensor) -> bool:
    """Whether the pixels of a row are dense and channels last, and rows and frames are whole pixels apart."""
    frames, channels, rows, width = strip.shape
    dense = (channels == 1 or strip.stride(1) == 1) and (width == 1 or strip.stride(3) == channels)
    apart = (rows == 1 or strip.stride(2) % channels == 0) and (frames == 1 or strip.stride(0) % channels == 0)
    return dense and apart


def _dense(strip: torch.Tensor) -> torch.Tensor:
    """A strip whose rows are dense; blocks that a model's own functions made may lie otherwise."""
    return strip if _is_dense(strip) else strip.contiguous(memory_format=torch.channels_last)


def _like(strip: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(strip, memory_format=torch.channels_last)
