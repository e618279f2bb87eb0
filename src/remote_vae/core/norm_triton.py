"""The kernels of `core.norm` for CUDA devices, in Triton: statistics in one sweep, norm and SiLU in another.

PyTorch's own GroupNorm starts one block per group, 32 on a device with over a hundred multiprocessors, and knows
channels-last maps only by copying them. These kernels run one block for each tile of a strip, count in float32, and
merge by the same rule as strips do. Import this module only if Triton is installed.
"""

from functools import reduce
from typing import Final

import torch
import triton
import triton.language as tl

from remote_vae.core.norm import Groups, Moments
from remote_vae.core.stages import Norm

TILE_PIXELS: Final = 64
TILE_CHANNELS: Final = 64
TILE: Final = {"tile_pixels": TILE_PIXELS, "tile_channels": TILE_CHANNELS}
MOST_PARTS: Final = 512  # blocks for a strip's pixels: enough for every multiprocessor, few enough to merge


@triton.jit  # type: ignore[untyped-decorator]
def _partial_moments(  # type: ignore[no-untyped-def]
    source, means, spreads, pixels, width, channels, row_stride, steps,
    tile_pixels: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    """Mean and squared distances for one tile of channels over `steps` tiles of pixels, merged tile by tile."""
    part = tl.program_id(0)
    channel = tl.program_id(1) * tile_channels + tl.arange(0, tile_channels)
    count = 0.0
    mean = tl.zeros((tile_channels,), tl.float32)
    spread = tl.zeros((tile_channels,), tl.float32)
    for step in range(steps):
        pixel = (part * steps + step) * tile_pixels + tl.arange(0, tile_pixels)
        inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
        place = (pixel // width).to(tl.int64) * row_stride + (pixel % width) * channels
        values = tl.load(source + place[:, None] + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        new = tl.minimum(tl.maximum(pixels - (part * steps + step) * tile_pixels, 0), tile_pixels).to(tl.float32)
        new_mean = tl.sum(values, 0) / tl.maximum(new, 1.0)
        apart = tl.where(inside, values - new_mean[None, :], 0.0)
        total = tl.maximum(count + new, 1.0)
        delta = new_mean - mean
        mean += delta * (new / total)
        spread += tl.sum(apart * apart, 0) + delta * delta * (count * new / total)
        count += new
    tl.store(means + part * channels + channel, mean, mask=channel < channels)
    tl.store(spreads + part * channels + channel, spread, mask=channel < channels)


@triton.jit  # type: ignore[untyped-decorator]
def _normalise(  # type: ignore[no-untyped-def]
    source, into, mean, variance, weight, bias, eps, pixels, width, channels, source_stride, into_stride,
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
    row, column = (pixel // width).to(tl.int64), (pixel % width) * channels
    values = tl.load(source + (row * source_stride + column)[:, None] + channel[None, :], mask=inside, other=0.0)
    found = (values.to(tl.float32) - centre[None, :]) * scale[None, :] + shift[None, :]
    if silu:
        found = found * tl.sigmoid(found)
    place = into + (row * into_stride + column)[:, None] + channel[None, :]
    tl.store(place, found.to(into.dtype.element_ty), mask=inside)


class Triton:
    """Meets `core.norm.Kernels`, frame by frame."""

    def moments(self, strip: torch.Tensor) -> Moments:
        return reduce(Moments.merge, map(_moments, torch.split(strip, 1)))

    def normalise(self, source: torch.Tensor, into: torch.Tensor, norm: Norm, of_groups: Groups, *, silu: bool) -> None:
        for frame, target in zip(torch.split(source, 1), torch.split(into, 1), strict=True):
            _normalise_frame(frame, target, norm, of_groups, silu=silu)


def _moments(strip: torch.Tensor) -> Moments:
    channels, pixels, width = strip.shape[1], strip.shape[2] * strip.shape[3], strip.shape[3]
    steps = triton.cdiv(triton.cdiv(pixels, TILE_PIXELS), MOST_PARTS)
    parts = triton.cdiv(pixels, TILE_PIXELS * steps)
    means, spreads = torch.empty(2, parts, channels, dtype=torch.float32, device=strip.device)
    grid = (parts, triton.cdiv(channels, TILE_CHANNELS))
    _partial_moments[grid](strip, means, spreads, pixels, width, channels, _row_stride(strip), steps, **TILE)
    return _merge(means, spreads, pixels, TILE_PIXELS * steps)


def _normalise_frame(source: torch.Tensor, into: torch.Tensor, norm: Norm, of_groups: Groups, *, silu: bool) -> None:
    channels, pixels, width = source.shape[1], source.shape[2] * source.shape[3], source.shape[3]
    mean, variance = of_groups
    grid = (triton.cdiv(pixels, TILE_PIXELS), triton.cdiv(channels, TILE_CHANNELS))
    sizes = (pixels, width, channels, _row_stride(source), _row_stride(into))
    _normalise[grid](source, into, mean, variance, norm.weight, norm.bias, norm.eps, *sizes, silu=silu, **TILE)


def _row_stride(strip: torch.Tensor) -> int:
    """How many values lie between two rows. *Raises* ValueError unless the strip is dense and channels last."""
    if strip.shape[0] != 1 or (strip.shape[1] > 1 and strip.stride(1) != 1) or strip.stride(3) != strip.shape[1]:
        raise ValueError("a strip is one picture's rows, channels last")
    return strip.stride(2)


def _merge(means: torch.Tensor, spreads: torch.Tensor, pixels: int, each: int) -> Moments:
    """Merges all parts; each has `each` pixels, and the last one the rest. *Shapes*: [parts,C] both."""
    counts = torch.full((len(means), 1), float(each), device=means.device)
    counts[-1] = pixels - each * (len(means) - 1)
    mean = (counts * means).sum(0) / pixels
    spread = spreads.sum(0) + (counts * (means - mean).square()).sum(0)
    return Moments(pixels, mean, spread)
