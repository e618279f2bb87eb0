"""The mid-block's attention, exact, in chunks of queries: never a matrix of all positions by all positions."""

from typing import Final

import torch
from torch.nn import functional

from remote_vae.core import attention_packed
from remote_vae.core.filters import arithmetic
from remote_vae.core.has_triton import has_triton
from remote_vae.core.stages import Convolution

CHUNK_BYTES: Final = 64 * 2**20  # the most that a chunk of queries holds for itself
WIDEST_FUSED: Final = 256  # channels of a head; PyTorch's fast fused kernels for CUDA devices take no more
QUERIES: Final = 4096  # of a chunk by products: results in tiles of 128x128 that occupy every multiprocessor
FEW_QUERIES: Final = 2048  # if memory is short


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, queries: int = 0, cores: int = 0
) -> torch.Tensor:
    """softmax(q k' / sqrt(C)) v, chunk by chunk; the result overwrites `query`.

    With `queries` it is computed by products, for so many queries at a time. Tensors without values hold what they
    would hold on a CPU of so many `cores`, if it is one.
    Scores are products summed in float32 and never rounded to 16 bits: a score of some tens would lose its fraction.
    *Shapes*: [N,C] each.
    """
    if queries:
        from remote_vae.core.attention_triton import attend_by_products

        for chunk in torch.split(query, queries):
            attend_by_products(chunk, key, value)
        return query
    device = torch.device("cpu") if cores else query.device
    dtype = multiplied_in(query.dtype, device)
    key, value = key.to(dtype), value.to(dtype)
    if attention_packed.pays(len(query), key.shape[1], dtype, device):
        if query.is_meta:
            held = attention_packed.held_bytes(len(query), len(key), key.shape[1], cores)
            torch.empty(held, dtype=torch.uint8, device="meta")
        else:
            attention_packed.attend(query, key, value)
        return query
    # A fused kernel takes keys block by block and keeps no scores; without one a chunk holds all its scores.
    held = key.shape[1] if _is_fused(key, value) else len(key)
    rows = max(1, CHUNK_BYTES // (8 * held))
    for start in range(0, len(query), rows):
        chunk = query[start : start + rows]
        chunk.copy_(_attention(chunk.to(dtype), key, value))
    return query


def multiplied_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision of attention's products."""
    return torch.float32 if device.type == "cpu" and not _multiplies_16_bits_fast() else dtype


def by_products(channels: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether two matrix products and the scores between them take less time than PyTorch's fused kernel.

    So it is calculated by `benchmarks/roofline.py`, from the time that attention takes in published figures.
    """
    wide = dtype.itemsize == 2 and channels > WIDEST_FUSED
    return wide and torch.version.cuda is not None and has_triton(device)


def products_bytes(queries: int, positions: int, channels: int) -> int:
    """Bytes of a chunk: scores in float32, their exponentials in 16 bits, and the result in float32."""
    return queries * (6 * positions + 4 * channels)


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
