"""The mid-block's attention, exact, in chunks of queries: never a matrix of all positions by all positions."""

from typing import Final

import torch
from torch.nn import functional

from remote_vae.core.precision import arithmetic

SCORE_BYTES: Final = 16 * 2**20  # of one chunk's scores


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(q k' / sqrt(C)) v, chunk by chunk; the result overwrites `query`.

    Scores are products summed in float32 and never rounded to 16 bits: a score of some tens would lose its fraction.
    *Shapes*: [N,C] each.
    """
    rows = max(1, SCORE_BYTES // (4 * len(key)))
    if query.dtype is torch.float32 or (query.device.type == "cpu" and not _multiplies_16_bits_fast()):
        # What is summed over many positions may be rounded first, as fused kernels do it too; scores may not.
        rounded = arithmetic(value.dtype, value.device) is torch.bfloat16
        wide, values = key.float().T, value if rounded else value.float()
        for start in range(0, len(query), rows):
            chunk = query[start : start + rows]
            scores = (chunk.float() @ wide).mul_(query.shape[1] ** -0.5)
            chunk.copy_(torch.softmax(scores, -1).to(values.dtype) @ values)
        return query
    for start in range(0, len(query), rows):
        chunk = query[start : start + rows]
        chunk.copy_(
            functional.scaled_dot_product_attention(chunk[None, None], key[None, None], value[None, None])[0, 0]
        )
    return query


def _multiplies_16_bits_fast() -> bool:
    """Without matrix units the fused kernel is half as fast as float32 products."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    return bool(capabilities and capabilities().get("amx_bf16"))
