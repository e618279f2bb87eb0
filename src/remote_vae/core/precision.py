"""Which precision a device multiplies in."""

from functools import cache

import torch


def arithmetic(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """`dtype`, or float32 on a CPU whose libraries have no fast products of that type: there 16 bits take
    many times as long as float32, and keep only their half of the memory.
    """
    if device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) and not _multiplies(dtype):
        return torch.float32
    return dtype


@cache
def _multiplies(dtype: torch.dtype) -> bool:
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
    return supported is None or bool(supported())
