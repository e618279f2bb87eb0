"""Statistics that merge, so that those of a map come from those of its strips."""

from dataclasses import dataclass

import torch

Groups = tuple[torch.Tensor, torch.Tensor]  # mean and biased variance of each channel's group, [C] both


@dataclass(frozen=True, slots=True)
class Moments:
    """Of each channel: how many values, their mean, and the sum of squared distances from it; float32.

    *Shapes*: mean and spread [C].
    """

    count: int
    mean: torch.Tensor
    spread: torch.Tensor

    def merge(self, other: "Moments") -> "Moments":
        """Of both sets together; how far the two means lie apart is part of the spread.

        *Source*: Chan, Golub and LeVeque, 1979.
        """
        count = self.count + other.count
        apart = other.mean - self.mean
        share = other.count / count
        return Moments(
            count,
            self.mean + apart * share,
            self.spread + other.spread + apart.square() * (self.count * share),
        )

    def of_groups(self, groups: int) -> Groups:
        means, spreads = self.mean.view(groups, -1), self.spread.view(groups, -1)
        mean = means.mean(1, keepdim=True)
        spread = spreads.sum(1, keepdim=True) + self.count * (means - mean).square().sum(1, keepdim=True)
        variance = spread / (self.count * means.shape[1])
        return mean.expand_as(means).reshape(-1), variance.expand_as(means).reshape(-1)
