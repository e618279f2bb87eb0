"""The norm of local networks, which sees one position at a time."""

from typing import Final

import torch
from torch.nn import functional

from remote_vae.core.has_triton import has_triton
from remote_vae.core.local import Norm

NORM_BYTES: Final = {"cpu": 2**20}  # normalised at a time: values stay in the cache from one operation to the next
LARGE_NORM_BYTES: Final = 64 * 2**20
LEAST: Final = 1e-12  # the root mean square of zeros


def normalise(source: torch.Tensor, into: torch.Tensor, norm: Norm | None, *, silu: bool = False) -> None:
    """Writes a map, after the norm and SiLU if they are asked for. *Shapes*: [f,C,rows,W], channels last, both.

    Few bytes are alive beside the two maps, so for a prediction there is nothing to do.
    """
    if source.is_meta:
        return
    if norm is None and not silu:
        into.copy_(source)
        return
    if has_triton(source.device):
        from remote_vae.core.norm_triton import divide

        divide(source, into, norm, LEAST, silu=silu)
        return
    most = max(1, NORM_BYTES.get(source.device.type, LARGE_NORM_BYTES) // (4 * source.shape[1] * source.shape[3]))
    for frame, target in zip(source, into, strict=True):
        for rows, goal in zip(torch.split(frame, most, 1), torch.split(target, most, 1), strict=True):
            _normalise(rows.permute(1, 2, 0), goal.permute(1, 2, 0), norm, silu)


def _normalise(values: torch.Tensor, into: torch.Tensor, norm: Norm | None, silu: bool) -> None:
    """*Shapes*: [rows,W,C]."""
    wide = into if into.dtype is torch.float32 else torch.empty_like(values, dtype=torch.float32)
    if norm is None:
        wide.copy_(values)
    else:
        length = torch.linalg.vector_norm(values, dim=-1, keepdim=True, dtype=torch.float32)
        root = length.square_().div_(values.shape[-1]).add_(norm.eps).sqrt_().clamp_min_(LEAST)
        torch.div(values, root, out=wide)
        if norm.weight is not None:
            wide.mul_(norm.weight)
    if silu:
        functional.silu(wide, inplace=True)
    if wide is not into:
        into.copy_(wide)
