"""Attention along time at each position of a stored map, a few rows of all frames at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn import functional

from remote_vae.core.attention import linear
from remote_vae.core.norm import Kernels
from remote_vae.core.stages import Convolution, Norm

POSITIONS: Final = 2**15  # at a time; CUDA's kernels take no more than 2**16 sequences


@dataclass(frozen=True, slots=True)
class TimeAttention:
    """x + out(softmax(q k' / sqrt(c)) v) after GroupNorm. At each position a frame attends to itself and those before.

    Each head has c channels. With `eps`, its queries and keys are divided by their length, which is at least that.
    *Shapes*: weights [C,C,1,1].
    """

    norm: Norm
    query: Convolution
    key: Convolution
    value: Convolution
    out: Convolution
    heads: int = 1
    eps: float = 0.0


def attend_in_time(
    parts: list[torch.Tensor], stage: TimeAttention, kernels: Kernels, rows: int, checkpoint: Callable[[], None]
) -> None:
    """Changes a map in place, so many rows at a time. *Shapes*: `parts`, one after another in time, [f,C,H,W] each."""
    height, width = parts[0].shape[2:]
    frames = (frame for part in parts for frame in torch.split(part, 1))
    scale, shift = map(torch.stack, zip(*(_of_norm(frame, stage.norm, kernels) for frame in frames), strict=True))
    rows = max(1, min(rows, POSITIONS // width))
    for start in range(0, height, rows):
        checkpoint()
        given = [part[:, :, start : start + rows] for part in parts]
        found = _attended(given, stage, scale, shift)
        for part, branch in zip(given, torch.split(found, [*map(len, given)]), strict=True):
            part.add_(branch)


def _of_norm(frame: torch.Tensor, norm: Norm, kernels: Kernels) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors and shifts of the channels of a frame."""
    if frame.is_meta:  # there are no values
        return norm.weight, norm.bias
    mean, variance = kernels.moments(frame).of_groups(norm.groups)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return scale, norm.bias - mean * scale


def _attended(
    given: list[torch.Tensor], stage: TimeAttention, scale: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    """*Shapes*: `given` [f,C,rows,W], scale and shift [F,C] -> [F,C,rows,W]."""
    dtype, (_, channels, rows, width) = given[0].dtype, given[0].shape
    window = torch.cat([part.permute(2, 3, 0, 1).flatten(0, 1) for part in given], 1)  # [positions,F,C]
    tokens = torch.addcmul(shift, window.float(), scale).to(dtype).flatten(0, 1)
    shape = (*window.shape[:2], stage.heads, -1)
    del window
    query, key, value = (
        linear(tokens, part).view(shape).transpose(1, 2) for part in (stage.query, stage.key, stage.value)
    )
    del tokens
    if stage.eps:
        query, key = (functional.normalize(part, dim=-1, eps=stage.eps) for part in (query, key))
    # On meta, the kernel that makes no matrix of scores is stood for by its result.
    found = query if query.is_meta else functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    del query, key, value
    branch = linear(found.transpose(1, 2).reshape(-1, channels), stage.out)
    return branch.view(rows, width, -1, channels).permute(2, 3, 0, 1)
