"""Attention on a CPU in float32 by products with keys and values that are packed for the CPU's library.

Torch's fused kernel multiplies with MKL, which on AMD's CPUs reaches less than half of the rate of `core.products`.
"""

from typing import Final

import torch

from remote_vae.core.products import convolved, packed, packs
from remote_vae.core.strip_threads import Span, cores, workers

SCORES: Final = 2**19  # of a chunk of queries, which stay in the cache
LEAST_QUERIES: Final = 64  # of a chunk: with fewer, reading all keys and values takes the time
LEAST_POSITIONS: Final = 256  # with fewer, packing takes as long as it saves
LEAST_CHANNELS: Final = 128  # with fewer, scores take more time than products


def pays(queries: int, channels: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this takes less time than torch's fused kernel."""
    large = queries >= LEAST_POSITIONS and channels >= LEAST_CHANNELS
    return large and device.type == "cpu" and dtype is torch.float32 and packs()


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """softmax(q k' / sqrt(C)) v, which overwrites `query`. Chunks of queries are shared among the cores.

    Keys and values are in float32. *Shapes*: [N,C] each.
    """
    (positions, channels), count, many = key.shape, len(query), _queries(len(key))
    keys = packed(key.reshape(1, positions, channels, 1), (1, 1, many, 1, channels))
    values = packed(value.t().reshape(1, channels, positions, 1), (1, 1, many, 1, positions))

    def work(span: Span) -> None:
        chunk = query[slice(*span)]
        rows = (chunk.float() * channels**-0.5).view(1, -1, 1, channels)
        scores = convolved(rows, keys, None).view(-1, positions)
        del rows
        torch.softmax(scores, 1, out=scores)
        chunk.copy_(convolved(scores.view(1, -1, 1, positions), values, None).view(chunk.shape))

    spans = ((start, min(start + many, count)) for start in range(0, count, many))
    workers(cores(query.device)).each(spans, work, lambda span, nothing: None)


def held_bytes(queries: int, positions: int, channels: int, count: int) -> int:
    """Bytes beside queries, keys and values. *Units*: `count` of cores."""
    many = min(queries, _queries(positions))
    chunks = min(count, -(-queries // many)) * many * (positions + channels)
    return 4 * (2 * positions * channels + chunks)


def _queries(positions: int) -> int:
    return max(LEAST_QUERIES, SCORES // positions)
