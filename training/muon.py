"""Muon: momentum whose every matrix is made orthogonal before it is applied.

*Source*: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the step's size is that of
AdamW, after Liu et al., "Muon is scalable for LLM training", 2025. torch has it for matrices, not for convolutions.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from remote_vae.core.filters import arithmetic

MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)  # brings all singular values near one in five rounds
ADAM_SIZE = 0.2  # root mean square of a typical step of AdamW, in learning rates


class Muon(torch.optim.Optimizer):
    """For weights of convolutions, as matrices of [outputs, inputs * taps]."""

    def __init__(self, weights: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(weights, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - MOMENTUM)
                matrix = weight.grad.lerp(momentum, MOMENTUM).flatten(1)
                update = _orthogonal(matrix).view(weight.shape)
                weight.sub_(update * (group["lr"] * ADAM_SIZE * max(matrix.shape) ** 0.5))


def _orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix whose rows, or columns, are orthonormal, by Newton-Schulz rounds; bfloat16 is enough."""
    if matrix.shape[0] > matrix.shape[1]:
        return _orthogonal(matrix.T).T.contiguous()
    x = (matrix / (matrix.norm() + 1e-12)).to(arithmetic(torch.bfloat16, matrix.device))
    first, third, fifth = QUINTIC
    for _ in range(5):
        square = x @ x.T
        x = first * x + (third * square + fifth * square @ square) @ x
    return x.float()
