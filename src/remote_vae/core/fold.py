"""Upsampling and the convolution after it as one layer."""

import torch

# Which taps of the 3x3 kernel fall on one source row, for the four rows of the folded kernel.
_TAPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def fold(weight: torch.Tensor) -> torch.Tensor:
    """Folds nearest-neighbour upsampling by 2 and a 3x3 convolution into one transposed convolution.

    The result is exact apart from rounding; stride is 2 and padding 1. An output pixel sees two rows and two columns of
    the source, so the nine taps fall on four.
    *Shapes*: [out,in,3,3] -> [in,out,4,4].
    """
    taps = torch.tensor(_TAPS, device=weight.device)
    folded = torch.einsum("ya,oiab,xb->ioyx", taps, weight.float(), taps)
    return folded.to(weight.dtype).contiguous(memory_format=torch.channels_last)
