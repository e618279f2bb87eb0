"""Latents and pictures in files."""

from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save_file

from remote_vae.errors import ConfigurationError
from remote_vae.protocol.frame import TensorFrame

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U8": "uint8"}
PREFERRED_KEYS = ("latents", "latent", "samples")


def read_latents(path: Path, *, key: str | None = None) -> TensorFrame:
    """One tensor of a .safetensors or .npy file; *raises* ConfigurationError naming what is there."""
    try:
        if path.suffix == ".npy":
            return _frame_of_array(np.load(path, allow_pickle=False), path)
        if path.suffix == ".safetensors":
            return _read_safetensors(path, key)
    except (OSError, ValueError, safetensors.SafetensorError) as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc}") from exc
    raise ConfigurationError(f"{path} has suffix {path.suffix!r}; latents are read from .safetensors and .npy")


def _frame_of_array(array: np.ndarray, path: Path) -> TensorFrame:
    if array.dtype.name not in ("float32", "float16", "uint8"):
        raise ConfigurationError(f"{path} holds {array.dtype.name}; expected float32 or float16")
    return TensorFrame(array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes())


def _read_safetensors(path: Path, key: str | None) -> TensorFrame:
    """Through the raw bytes, since numpy has no bfloat16."""
    tensors = dict(safetensors.deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
    chosen = key or next((name for name in PREFERRED_KEYS if name in tensors), None)
    if chosen is None and len(tensors) == 1:
        chosen = next(iter(tensors))
    if chosen is None or chosen not in tensors:
        raise ConfigurationError(f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}; choose one with --key")
    found = tensors[chosen]
    if found["dtype"] not in DTYPES:
        raise ConfigurationError(
            f"tensor {chosen!r} in {path} is {found['dtype']}; expected one of {', '.join(DTYPES)}"
        )
    return TensorFrame(DTYPES[found["dtype"]], tuple(found["shape"]), bytes(found["data"]))


def write_tensor(path: Path, tensor: np.ndarray) -> None:
    """As .safetensors under the name "latents", or as .npy."""
    if path.suffix == ".npy":
        np.save(path, tensor)
    elif path.suffix == ".safetensors":
        save_file({"latents": np.ascontiguousarray(tensor)}, path)
    else:
        raise ConfigurationError(f"{path} has suffix {path.suffix!r}; tensors are written as .safetensors and .npy")


def array_of(frame: TensorFrame) -> np.ndarray:
    """Floats and bytes as numpy sees them; bfloat16 widened to float32, which is exact."""
    if frame.dtype == "bfloat16":
        bits = np.frombuffer(frame.buffer, dtype="<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(frame.shape)
    return np.frombuffer(frame.buffer, dtype=np.dtype(frame.dtype)).reshape(frame.shape)
