"""Biases of convolutions moved to where they cost nothing.

A GPU's libraries write the products of a convolution, and PyTorch then reads and writes the map once more to add the
bias. Between a convolution and the norm after it a bias is a constant of each channel: the norm can count it without
its being in the map. After the last convolution of a residual block, it is added together with the branch.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch

from remote_vae.core.has_triton import has_triton
from remote_vae.core.stages import Convolution, Downsample, Norm, Program, Residual, Stage, Upsample


def pays(device: torch.device) -> bool:
    """Whether the device has a kernel that adds a branch and a bias at once. Meta tensors stand for such a device."""
    return device.type == "meta" or has_triton(device)


def with_late_biases(program: Program) -> Program:
    """A program with the same output, apart from rounding, whose residual blocks take the biases before them too."""
    stages: list[Stage] = []
    missing: torch.Tensor | None = None  # what the map after the last stage does not hold yet
    for stage, following in zip(program.stages, (*program.stages[1:], None), strict=True):
        match stage:
            case Residual():
                stages.append(_with_late_biases(stage, missing))
                missing = None
            case Convolution() | Upsample() | Downsample() if isinstance(following, Residual) and _takes(following):
                stages.append(replace(stage, bias=None))
                missing = _wide(stage.bias)
            case _:
                stages.append(stage)
    return replace(program, stages=tuple(stages))


def _takes(block: Residual) -> bool:
    """Whether a constant of the map before the block is a constant of what its shortcut gives."""
    return block.shortcut is None or block.shortcut.weight[0, 0].numel() == 1


def _with_late_biases(block: Residual, missing: torch.Tensor | None) -> Residual:
    first, second, shortcut = block.first, block.second, block.shortcut
    parts = [_wide(second.bias)]
    if shortcut is None:
        parts.append(missing)
    else:
        parts += [_wide(shortcut.bias), None if missing is None else shortcut.weight.flatten(1).float() @ missing]
    return Residual(
        replace(first, bias=None, norm=_counting(first.norm, missing)),
        replace(second, bias=None, norm=_counting(second.norm, _wide(first.bias))),
        None if shortcut is None else replace(shortcut, bias=None),
        _sum(parts),
    )


def _counting(norm: Norm | None, missing: torch.Tensor | None) -> Norm | None:
    return None if norm is None else replace(norm, offset=missing)


def _wide(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.float()


def _sum(parts: Iterable[torch.Tensor | None]) -> torch.Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.stack(known).sum(0) if known else None
