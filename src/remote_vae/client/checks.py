"""Whether a tensor or picture can be the answer to what was asked; the wire itself has compared bytes with shapes."""

import math
from typing import Final

from remote_vae.errors import InvalidReply
from remote_vae.protocol.messages import DecodeRequest, EncodeRequest
from remote_vae.values import Tensor

FLOATS: Final = ("float16", "float32")
LARGEST_RATIO: Final = 64  # pixels per latent cell and side, far above any VAE's


def most_pixels(request: DecodeRequest) -> int:
    """Above this a picture cannot come from the latent, and its pixels are not even unpacked."""
    return LARGEST_RATIO**2 * math.prod(request.latent.shape)


def check_decoded(request: DecodeRequest, tensor: Tensor) -> None:
    """*Raises* InvalidReply unless type and number of axes go with the request.

    *Shapes*: pt [B,C,H,W] or [B,C,F,H,W]; pil [B,C,H,W] or [F,C,H,W]; partial_postprocess [B,H,W,C] or [F,H,W,C].
    """
    raw = request.options["output_type"] == "pt"
    if raw and request.options["partial_postprocess"]:
        _expect(tensor, ("uint8",), ranks=(4,))
    else:
        _expect(tensor, FLOATS, ranks=(4, 5) if raw else (4,))


def check_encoded(request: EncodeRequest, tensor: Tensor) -> None:
    """*Raises* InvalidReply unless the tensor is a latent, [B,C,h,w] or [B,C,f,h,w]."""
    _expect(tensor, FLOATS, ranks=(4, 5))


def _expect(tensor: Tensor, dtypes: tuple[str, ...], *, ranks: tuple[int, ...]) -> None:
    if tensor.dtype not in dtypes:
        raise InvalidReply(f"the reply's tensor is {tensor.dtype}; expected {' or '.join(dtypes)}", dtype=tensor.dtype)
    if len(tensor.shape) not in ranks:
        axes = " or ".join(str(rank) for rank in ranks)
        raise InvalidReply(f"the reply's tensor has shape {list(tensor.shape)}; expected {axes} axes")
