"""Attention by two matrix products, for heads that are too wide for the fused kernels of CUDA devices to be fast.

Scores are products summed and kept in float32. Import this module only if Triton is installed.
"""

from typing import Final

import torch
import triton
import triton.language as tl

TILE_SCORES: Final = 4096  # for any number of columns, so that a new size compiles nothing


@triton.jit(do_not_specialize=["columns"])  # type: ignore[untyped-decorator]
def _exponentials(  # type: ignore[no-untyped-def]
    source, into, totals, columns, scale,
    tile: tl.constexpr,
):  # fmt: skip
    """Of one row, the exponentials of what every score times `scale` is below the largest, and their sum."""
    row = tl.program_id(0).to(tl.int64) * columns
    most = -float("inf")
    total = 0.0
    for first in range(0, columns, tile):
        column = first + tl.arange(0, tile)
        scores = tl.load(source + row + column, mask=column < columns, other=-float("inf")) * scale
        new = tl.maximum(most, tl.max(scores, 0))
        total = total * tl.exp(most - new) + tl.sum(tl.exp(scores - new), 0)
        most = new
    for first in range(0, columns, tile):
        column = first + tl.arange(0, tile)
        scores = tl.load(source + row + column, mask=column < columns, other=-float("inf")) * scale
        tl.store(into + row + column, tl.exp(scores - most).to(into.dtype.element_ty), mask=column < columns)
    tl.store(totals + tl.program_id(0), total)


def attend_by_products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """softmax(q k' / sqrt(C)) v; the result overwrites `query`. Quotients are taken last, so that no weight is tiny.

    *Shapes*: [N,C] each.
    """
    scores = _product(query, key.t())
    weights = torch.empty_like(scores, dtype=value.dtype)
    totals = torch.empty(len(scores), 1, dtype=torch.float32, device=scores.device)
    columns = scores.shape[1]
    scale = query.shape[1] ** -0.5
    _exponentials[(len(scores),)](scores, weights, totals, columns, scale, tile=TILE_SCORES)
    del scores
    torch.div(_product(weights, value), totals, out=query)


def _product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """In float32; CPUs, on which only tests run this, have no such product of 16 bits."""
    if one.device.type == "cpu":
        return one.float() @ other.float()
    return torch.mm(one, other, out_dtype=torch.float32)
