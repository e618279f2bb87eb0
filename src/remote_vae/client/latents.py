"""Tensors of the caller <-> TensorFrame, without importing torch: whoever hands a torch tensor over has imported it."""

import sys
from typing import Any, TypeAlias

import numpy as np

from remote_vae.protocol.dtype import check_dtype
from remote_vae.protocol.frame import TensorFrame, frame_bytes

Tensor: TypeAlias = Any  # a torch.Tensor, a numpy.ndarray or a TensorFrame; its type decides what comes back


def is_torch(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def frame_of(tensor: Tensor) -> TensorFrame:
    """The tensor's bytes as they travel; a contiguous tensor in main memory is not copied.

    *Raises* InvalidValue for a type that does not travel or an empty tensor, TypeError for what is no tensor.
    """
    if isinstance(tensor, TensorFrame):
        return tensor
    if is_torch(tensor):
        return _frame_of_torch(tensor)
    if isinstance(tensor, np.ndarray):
        return _frame_of_numpy(tensor)
    raise TypeError(f"expected a torch tensor, a numpy array or a TensorFrame, not {type(tensor).__name__}")


def _frame_of_torch(tensor: Tensor) -> TensorFrame:
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    frame_bytes(dtype, shape)
    raw = tensor.detach().to("cpu").contiguous().reshape(-1).view(sys.modules["torch"].uint8)
    return TensorFrame(dtype, shape, raw.numpy().data)


def _frame_of_numpy(array: np.ndarray) -> TensorFrame:
    frame_bytes(array.dtype.name, array.shape)
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return TensorFrame(array.dtype.name, array.shape, little.reshape(-1).view(np.uint8).data)


def copy_of(tensor: Tensor) -> Tensor:
    """The same values in main memory, in a tensor of their own, which the caller cannot change."""
    if is_torch(tensor):
        return tensor.detach().to("cpu", copy=True)
    if isinstance(tensor, TensorFrame):
        return TensorFrame(tensor.dtype, tensor.shape, bytes(tensor.buffer))
    return np.array(tensor)


def tensor_like(frame: TensorFrame, like: object) -> Tensor:
    """The frame as a torch tensor when `like` is one, else as a numpy array; writable."""
    return as_torch(frame) if is_torch(like) else as_numpy(frame)


def as_torch(frame: TensorFrame) -> Tensor:
    torch: Any = sys.modules["torch"]
    buffer = frame.buffer if isinstance(frame.buffer, bytearray) else bytearray(frame.buffer)
    return torch.frombuffer(buffer, dtype=getattr(torch, check_dtype(frame.dtype))).reshape(frame.shape)


def as_numpy(frame: TensorFrame) -> Tensor:
    """*Raises* InvalidValue for bfloat16, which numpy does not know."""
    dtype = np.dtype(check_dtype(frame.dtype, allowed=("float16", "float32", "uint8"))).newbyteorder("<")
    buffer = frame.buffer if isinstance(frame.buffer, bytearray) else bytearray(frame.buffer)
    return np.frombuffer(buffer, dtype=dtype).reshape(frame.shape)
