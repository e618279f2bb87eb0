"""TensorFrame: a tensor on the wire."""

import math
from dataclasses import dataclass

from remote_vae.errors import InvalidValue, WrongByteCount
from remote_vae.protocol.dtype import ITEM_BYTES, check_dtype

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class TensorFrame:
    """Type, shape and the raw little-endian C-order bytes; cannot be built when the three disagree.

    *Raises* InvalidValue for an unknown dtype or a size below 1, WrongByteCount for a lying length.
    """

    dtype: str
    shape: tuple[int, ...]
    buffer: Buffer

    def __post_init__(self) -> None:
        check_bytes(memoryview(self.buffer).nbytes, self.dtype, self.shape)


def check_bytes(actual: int, dtype: str, shape: tuple[int, ...]) -> None:
    """*Raises* WrongByteCount unless a tensor of this dtype and shape has `actual` bytes."""
    expected = frame_bytes(dtype, shape)
    if actual != expected:
        raise WrongByteCount(
            f"the body has {actual} bytes; shape {list(shape)} of {dtype} needs {expected}",
            actual_bytes=actual,
            expected_bytes=expected,
            shape=list(shape),
            dtype=dtype,
        )


def frame_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor, in exact integers: nothing here can wrap around."""
    check_dtype(dtype)
    if not shape or any(size < 1 for size in shape):
        raise InvalidValue(
            f"shape {list(shape)} must name at least one axis, each of size 1 or more",
            name="shape",
            shape=list(shape),
        )
    return math.prod(shape) * ITEM_BYTES[dtype]
