"""Neighbourhood attention in three dimensions by torch's own attention, in pieces, on every device.

diffusers has it by FlexAttention, which without a compiler makes all scores at once, and by a kernel for some GPUs.
Here a block of queries meets the keys around it, and a mask leaves each query its own window.
"""

import math
from collections.abc import Iterator
from itertools import islice, product
from typing import Any, Final

import torch
from torch.nn import functional

BLOCK: Final = (4, 8, 8)  # queries of a piece: frames, rows, columns

Window = tuple[slice, slice, torch.Tensor]
"""Queries along an axis, the keys around them, and which keys each query sees."""


class NeighbourhoodAttention:
    """A processor for diffusers' modules of this attention. It takes no mask, so none is made for it."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, block_mask: None = None) -> torch.Tensor:
        """*Shapes*: [B,T,H,W,C] -> the same."""
        query, key, value = attn.project_qkv(hidden_states)
        found = torch.empty_like(query)
        axes = zip(query.shape[1:4], attn.kernel_size, BLOCK, strict=True)
        most = 1 if query.is_meta else None  # in a prediction of memory every piece takes as much
        for (t, ts, seen_t), (h, hs, seen_h), (w, ws, seen_w) in product(
            *(list(islice(_windows(*axis, query.device), most)) for axis in axes)
        ):
            mask = seen_t[:, None, None, :, None, None] & seen_h[:, None, None, :, None] & seen_w[:, None, None, :]
            found[:, t, h, w] = _attend(query[:, t, h, w], key[:, ts, hs, ws], value[:, ts, hs, ws], mask)
        outcome: torch.Tensor = attn.to_out[0](found.flatten(-2))
        return outcome


def _windows(length: int, kernel: int, block: int, device: torch.device) -> Iterator[Window]:
    """The pieces of an axis. At its ends a window is moved inwards, so that all have as many keys."""
    for first in range(0, length, block):
        queries = range(first, min(first + block, length))
        starts = [min(max(query - kernel // 2, 0), length - kernel) for query in (queries[0], queries[-1])]
        keys = slice(starts[0], starts[1] + kernel)
        start = (torch.arange(queries.start, queries.stop, device=device) - kernel // 2).clamp(0, length - kernel)
        place = torch.arange(keys.start, keys.stop, device=device)
        seen = (place >= start[:, None]) & (place < start[:, None] + kernel)
        yield slice(queries.start, queries.stop), keys, seen


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """*Shapes*: queries [B,t,h,w,heads,c], keys and values [B,T,H,W,heads,c], mask [t,h,w,T,H,W]."""
    q, k, v = (part.flatten(1, 3).transpose(1, 2) for part in (query, key, value))
    mask = mask.reshape(math.prod(mask.shape[:3]), -1)
    found = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)  # the query is scaled already
    return found.transpose(1, 2).reshape(query.shape)
