"""The mid-block's attention, exact, in chunks of queries: never a matrix of all positions by all positions."""

from typing import Final

import torch
from torch.nn import functional

from remote_vae.core.filters import arithmetic
from remote_vae.core.stages import Convolution

CHUNK_BYTES: Final = 64 * 2**20  # the most that a chunk of queries holds for itself


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(q k' / sqrt(C)) v, chunk by chunk; the result overwrites `query`.

    Scores are products summed in float32 and never rounded to 16 bits: a score of some tens would lose its fraction.
    *Shapes*: [N,C] each.
    """
    wide = query.device.type == "cpu" and not _multiplies_16_bits_fast()
    dtype = torch.float32 if wide else query.dtype
    key, value = key.to(dtype), value.to(dtype)
    # A fused kernel takes keys block by block and keeps no scores; without one a chunk holds all its scores.
    held = key.shape[1] if _is_fused(key, value) else len(key)
    rows = max(1, CHUNK_BYTES // (8 * held))
    for start in range(0, len(query), rows):
        chunk = query[start : start + rows]
        chunk.copy_(_attention(chunk.to(dtype), key, value))
    return query


def linear(rows: torch.Tensor, part: Convolution) -> torch.Tensor:
    """A 1x1 convolution of positions. *Shapes*: [N,C] -> [N,K]."""
    dtype = arithmetic(rows.dtype, rows.device)
    bias = None if part.bias is None else part.bias.to(dtype)
    return functional.linear(rows.to(dtype), part.weight.flatten(1).to(dtype), bias).to(rows.dtype)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return functional.scaled_dot_product_attention(query[None, None], key[None, None], value[None, None])[0, 0]


def _is_fused(key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether torch has a kernel for these tensors that makes no matrix of scores."""
    if key.device.type != "cuda":
        return key.device.type == "cpu"
    cuda = torch.backends.cuda
    given = cuda.SDPAParams(key[None, None], key[None, None], value[None, None], None, 0.0, False, False)
    return cuda.can_use_flash_attention(given) or cuda.can_use_efficient_attention(given)


def _multiplies_16_bits_fast() -> bool:
    """Whether the CPU has matrix units; without them the fused kernel of 16 bits is slower than that of float32."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    return bool(capabilities and capabilities().get("amx_bf16"))
