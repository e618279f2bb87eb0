"""Whether the kernels of `core.norm_triton` and `core.attention_triton` run on a device."""

from functools import cache
from importlib.util import find_spec

import torch


def has_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run there; only CUDA devices, and AMD's with ROCm, are asked."""
    return device.type == "cuda" and why_no_triton(device) is None


@cache
def why_no_triton(device: torch.device) -> str | None:
    """Why a CUDA device does without Triton's kernels, in one line; None if it has them.

    Triton comes with PyTorch, and yet a kernel may not run: old cards are not supported, and a C compiler and Python's
    headers are needed when it is first called. So one is tried. *Raises* the errors of a device that is full or broken.
    """
    if find_spec("triton") is None:
        return "Triton is not installed"
    try:
        from remote_vae.core.triton_trial import works

        return None if works(device) else "its kernels compute wrongly"
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as exc:  # noqa: BLE001  # boundary: a compiler's errors have no common class
        return f"{type(exc).__name__}: {' '.join(str(exc).split())[:200]}"
