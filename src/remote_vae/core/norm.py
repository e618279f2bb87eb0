"""GroupNorm over strips: statistics that merge, and their application with SiLU. Kernels depend on the device."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Final, Protocol, Self

import torch
from torch.nn import functional

from remote_vae.core.stages import Norm

PLAIN_BYTES: Final = 8 * 2**20  # the most that a float32 copy takes
EXACT_COUNT: Final = 2**13  # values for one call of batch norm's kernel, which adds them one by one: the error grows

Groups = tuple[torch.Tensor, torch.Tensor]  # mean and biased variance of each channel's group, [C] both


class Moments(Protocol):
    """Statistics of a map or of strips of it."""

    def merge(self, other: Self) -> Self:
        """The statistics of both together."""
        ...

    def of_groups(self, groups: int, offset: torch.Tensor | None = None) -> Groups:
        """The mean and the variance of each channel's group.

        With an offset, they are those of the values plus the offset of their channel, and the means are less by it:
        a norm of the values as they are then gives that of the sums.
        """
        ...


def merged(parts: Iterable[Moments]) -> Moments:
    """The statistics of all parts together."""
    return reduce(lambda one, other: one.merge(other), parts)


@dataclass(frozen=True, slots=True)
class ChannelMoments:
    """For each channel the number of values, their mean, and the sum of squared distances from it, in float32.

    Moments merge, so the statistics of a map come from those of its strips.

    *Shapes*: mean and spread [C].
    """

    count: int
    mean: torch.Tensor
    spread: torch.Tensor

    def merge(self, other: "ChannelMoments") -> "ChannelMoments":
        """The moments of both sets together; the distance of the two means is part of the spread.

        *Source*: Chan, Golub and LeVeque, 1979.
        """
        count = self.count + other.count
        apart = other.mean - self.mean
        share = other.count / count
        return ChannelMoments(
            count,
            self.mean + apart * share,
            self.spread + other.spread + apart.square() * (self.count * share),
        )

    def of_groups(self, groups: int, offset: torch.Tensor | None = None) -> Groups:
        found = self.mean if offset is None else self.mean + offset
        means, spreads = found.view(groups, -1), self.spread.view(groups, -1)
        mean = means.mean(1, keepdim=True)
        spread = spreads.sum(1, keepdim=True) + self.count * (means - mean).square().sum(1, keepdim=True)
        variance = spread / (self.count * means.shape[1])
        centre = mean.expand_as(means).reshape(-1)
        return centre if offset is None else centre - offset, variance.expand_as(means).reshape(-1)


class Kernels(Protocol):
    """The operations that differ between devices. Strips are [F,C,rows,W], channels last."""

    def moments(self, strip: torch.Tensor) -> Moments: ...

    def normalise(self, source: torch.Tensor, into: torch.Tensor, norm: Norm, of_groups: Groups, *, silu: bool) -> None:
        """Writes the norm of `source`, or SiLU of the norm, to `into`, which has the same shape."""
        ...

    def add(
        self, into: torch.Tensor, branch: torch.Tensor, bias: torch.Tensor | None, *, measured: bool
    ) -> Moments | None:
        """Adds a branch and a bias of each channel in place; gives the statistics of the sum if it is `measured`."""
        ...


class _Adding:
    """The sum by PyTorch's own operations."""

    def moments(self, strip: torch.Tensor) -> ChannelMoments:
        raise NotImplementedError

    def add(
        self, into: torch.Tensor, branch: torch.Tensor, bias: torch.Tensor | None, *, measured: bool
    ) -> ChannelMoments | None:
        into.add_(branch)
        if bias is not None:
            into.add_(bias.view(1, -1, 1, 1))
        return self.moments(into) if measured else None


class Plain(_Adding):
    """Runs on any device. It copies a few rows at a time to float32, so that the copies stay small beside a map."""

    def moments(self, strip: torch.Tensor) -> ChannelMoments:
        parts = (_moments(rows.float()) for rows in torch.split(strip, _rows(strip), 2))
        return reduce(ChannelMoments.merge, parts)

    def normalise(self, source: torch.Tensor, into: torch.Tensor, norm: Norm, of_groups: Groups, *, silu: bool) -> None:
        mean, variance = of_groups
        scale = norm.weight * (variance + norm.eps).rsqrt()
        shift = norm.bias - mean * scale
        for rows, target in zip(
            torch.split(source, _rows(source), 2), torch.split(into, _rows(source), 2), strict=True
        ):
            values = torch.addcmul(shift.view(1, -1, 1, 1), rows.float(), scale.view(1, -1, 1, 1))
            target.copy_(functional.silu(values, inplace=True) if silu else values)


def _rows(strip: torch.Tensor) -> int:
    return max(1, PLAIN_BYTES // (4 * len(strip) * strip.shape[1] * strip.shape[3]))


def _moments(rows: torch.Tensor) -> ChannelMoments:
    variance, mean = torch.var_mean(rows, (0, 2, 3), correction=0)
    count = rows.shape[0] * rows.shape[2] * rows.shape[3]
    return ChannelMoments(count, mean, variance * count)


class Cpu(_Adding):
    """Uses the kernels of batch norm, which read 16-bit channels-last strips in one pass and count in float32.

    In evaluation mode batch norm becomes a GroupNorm if every channel is given the statistics of its group.
    """

    def moments(self, strip: torch.Tensor) -> ChannelMoments:
        frames = max(1, EXACT_COUNT // (strip.shape[2] * strip.shape[3]))  # whole frames lie side by side
        rows = max(1, EXACT_COUNT // strip.shape[3])
        parts = (part for some in torch.split(strip, frames) for part in torch.split(some, rows, 2))
        return reduce(ChannelMoments.merge, map(_batch_moments, parts))

    def normalise(self, source: torch.Tensor, into: torch.Tensor, norm: Norm, of_groups: Groups, *, silu: bool) -> None:
        mean, variance = of_groups
        torch.ops.aten.native_batch_norm.out(
            source,
            norm.weight,
            norm.bias,
            mean,
            variance,
            False,
            0.0,
            norm.eps,
            out=into,
            save_mean=torch.empty(0),
            save_invstd=torch.empty(0),
        )
        if silu:
            functional.silu(into, inplace=True)


def _batch_moments(rows: torch.Tensor) -> ChannelMoments:
    channels, count = rows.shape[1], len(rows) * rows.shape[2] * rows.shape[3]
    unused = torch.zeros(channels), torch.ones(channels)  # as these are float32, so are the results
    mean, variance = torch.batch_norm_update_stats(rows, *unused, 0.0)
    return ChannelMoments(count, mean, variance * count)
