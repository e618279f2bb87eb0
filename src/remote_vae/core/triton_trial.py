"""A small kernel in Triton, which shows whether larger ones run. Import this module only if Triton is installed."""

import torch
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _sum(source, into, tile: tl.constexpr):  # type: ignore[no-untyped-def]
    values = tl.load(source + tl.arange(0, tile)).to(tl.float32)
    tl.store(into, tl.sum(values * tl.sigmoid(values), 0))


def works(device: torch.device) -> bool:
    """Whether the kernel's result is right; *raises* what compiling and launching it raise."""
    values = torch.ones(64, dtype=torch.float16, device=device)
    into = torch.empty(1, dtype=torch.float32, device=device)
    _sum[(1,)](values, into, tile=64)
    return abs(into.item() - 46.787) < 0.1  # 64 times SiLU of 1
