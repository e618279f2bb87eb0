"""Nearest-neighbour 2x and a 3x3 convolution as one transposed convolution."""

import torch

# Which taps of the 3x3 kernel fall on one source row, for the four rows of the folded kernel.
_TAPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def fold(weight: torch.Tensor) -> torch.Tensor:
    """The kernel of a transposed convolution (stride 2, padding 1) that does both; exact but for rounding.

    An output pixel sees two rows and two columns of the source, so the nine taps fall together on four.
    *Shapes*: [out,in,3,3] -> [in,out,4,4].
    """
    taps = torch.tensor(_TAPS, device=weight.device)
    folded = torch.einsum("ya,oiab,xb->ioyx", taps, weight.float(), taps)
    return folded.to(weight.dtype).contiguous(memory_format=torch.channels_last)
