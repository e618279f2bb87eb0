"""The caller's tensors <-> values.Tensor. Torch is not imported: a caller that has a torch tensor has imported it."""

import sys
from typing import Any, Final, TypeAlias

import numpy as np

from remote_vae.errors import InvalidValue
from remote_vae.values import Tensor, check_dtype, tensor_bytes

ADVICE: Final = {
    "bool": "of a mask, send float32 of 0 and 1",
    "uint16": "of pixels in 16 bits, send float32 of the values divided by 65535",
    "int16": "of pixels, send uint8, or float32 in [0, 1]",
    "int32": "of pixels, send uint8, or float32 in [0, 1]",
    "int64": "of pixels, send uint8, or float32 in [0, 1]",
    "float64": "send it as float32",
}
AnyTensor: TypeAlias = Any  # a torch.Tensor, a numpy.ndarray or a values.Tensor; its type decides what comes back


def is_torch(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def tensor_of(tensor: AnyTensor) -> Tensor:
    """The tensor's bytes as they travel; a contiguous tensor in main memory is not copied.

    *Raises* InvalidValue for a type that does not travel or an empty tensor, TypeError for anything but a tensor.
    """
    if isinstance(tensor, Tensor):
        return tensor
    if is_torch(tensor):
        return _tensor_of_torch(tensor)
    if isinstance(tensor, np.ndarray):
        return _tensor_of_numpy(tensor)
    raise TypeError(f"expected a torch tensor, a numpy array or a values.Tensor, not {type(tensor).__name__}")


def _check_dtype(dtype: str) -> None:
    """*Raises* InvalidValue for types whose scale only the caller knows, or whose precision."""
    if dtype in ADVICE:
        raise InvalidValue(f"dtype {dtype!r} is not one that travels here; {ADVICE[dtype]}", name="dtype")


def _tensor_of_torch(tensor: AnyTensor) -> Tensor:
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    _check_dtype(dtype)
    tensor_bytes(dtype, shape)
    raw = tensor.detach().to("cpu").contiguous().reshape(-1).view(sys.modules["torch"].uint8)
    return Tensor(dtype, shape, raw.numpy().data)


def _tensor_of_numpy(array: np.ndarray) -> Tensor:
    _check_dtype(array.dtype.name)
    tensor_bytes(array.dtype.name, array.shape)
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return Tensor(array.dtype.name, array.shape, little.reshape(-1).view(np.uint8).data)


def copy_of(tensor: AnyTensor) -> AnyTensor:
    """The same values in main memory, copied, so that the caller cannot change them."""
    if is_torch(tensor):
        return tensor.detach().to("cpu", copy=True)
    if isinstance(tensor, Tensor):
        return Tensor(tensor.dtype, tensor.shape, bytes(tensor.buffer))
    return np.array(tensor)


def tensor_like(tensor: Tensor, like: object) -> AnyTensor:
    """The tensor as a torch tensor if `like` is one, otherwise as a numpy array; writable."""
    return as_torch(tensor) if is_torch(like) else as_numpy(tensor)


def as_torch(tensor: Tensor) -> AnyTensor:
    torch: Any = sys.modules["torch"]
    buffer = tensor.buffer if isinstance(tensor.buffer, bytearray) else bytearray(tensor.buffer)
    return torch.frombuffer(buffer, dtype=getattr(torch, check_dtype(tensor.dtype))).reshape(tensor.shape)


def as_numpy(tensor: Tensor) -> AnyTensor:
    """*Raises* InvalidValue for bfloat16, which numpy does not know."""
    dtype = np.dtype(check_dtype(tensor.dtype, allowed=("float16", "float32", "uint8"))).newbyteorder("<")
    buffer = tensor.buffer if isinstance(tensor.buffer, bytearray) else bytearray(tensor.buffer)
    return np.frombuffer(buffer, dtype=dtype).reshape(tensor.shape)


def array_of(tensor: Tensor) -> "np.ndarray[Any, Any]":
    """Floats and bytes as numpy sees them; bfloat16 widened to float32, which is exact."""
    if tensor.dtype == "bfloat16":
        bits = np.frombuffer(tensor.buffer, dtype="<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(tensor.shape)
    return np.frombuffer(tensor.buffer, dtype=np.dtype(tensor.dtype)).reshape(tensor.shape)
