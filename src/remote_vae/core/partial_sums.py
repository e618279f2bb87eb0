"""Convolutions of torch's libraries. On a CPU in float32, a sum over many channels is made of several shorter sums.

The libraries add the products of a convolution in two dimensions one after another, so that the rounding errors of a
long sum grow. Layers of many channels have small maps, so the sums take little of a decode's time.
"""

from typing import Final

import torch
from torch.nn import functional

WIDE: Final = 256  # a layer of more channels is summed in parts
CHANNELS: Final = 128  # of a part


def convolve(
    given: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> torch.Tensor:
    """What `conv2d` gives."""
    parts = parts_of(weight, given.dtype, given.device)
    if parts == 1:
        return functional.conv2d(given, weight, bias, stride, padding)
    (first, *given_later), (kernel, *kernels_later) = given.chunk(parts, 1), weight.chunk(parts, 1)
    found = functional.conv2d(first, kernel, bias, stride, padding)
    for some, kernel in zip(given_later, kernels_later, strict=True):
        found += functional.conv2d(some, kernel, None, stride, padding)
    return found


def parts_of(weight: torch.Tensor, dtype: torch.dtype, device: torch.device) -> int:
    """How many sums there are if a device multiplies in a precision. *Shapes*: weight [out,in,...]."""
    several = device.type == "cpu" and dtype is torch.float32 and weight.shape[-1] == 3
    return -(-weight.shape[1] // CHANNELS) if several and weight.shape[1] > WIDE else 1


def values_beside(parts: int, read: int, made: int) -> int:
    """How many values are alive beside what is read and made: a part of the channels, and its sum."""
    return 0 if parts == 1 else read // parts + made
