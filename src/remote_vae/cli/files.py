"""Latents and pictures in files. Whatever is wrong with a file is a ConfigurationError that names it."""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import save

from remote_vae.client.latents import array_of, tensor_of
from remote_vae.errors import ConfigurationError, InvalidValue
from remote_vae.values import Tensor

TENSORS = (".safetensors", ".npy")
LATENTS = (*TENSORS, ".latent")
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PREFERRED_KEYS = ("latents", "latent", "samples", "latent_tensor")
COMFYUI_KEY = "latent_tensor"
COMFYUI_MARK = "latent_format_version_0"  # without it, the file is of a time when ComfyUI kept latents scaled as SD 1's
OLD_COMFYUI_FACTOR = 0.18215
ADVICE = 'save it with safetensors: save_file({"latents": latents.contiguous()}, "latents.safetensors")'


@contextlib.contextmanager
def _naming(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be {what}: {exc.strerror or exc}") from exc
    except (ValueError, EOFError, InvalidValue, safetensors.SafetensorError) as exc:
        raise ConfigurationError(f"{path} cannot be {what}: {str(exc).splitlines()[0]}") from exc


def read_file(path: Path) -> bytes:
    with _naming(path, "read"):
        return path.read_bytes()


def write_file(path: Path, data: bytes) -> None:
    with _naming(path, "written"):
        path.write_bytes(data)


def check_output(path: Path, suffixes: Collection[str]) -> None:
    """Refuses, before any work is done, what could not be written in the end."""
    if path.suffix.lower() not in suffixes:
        raise ConfigurationError(f"{path} has suffix {path.suffix!r}; expected one of {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{path} cannot be written: there is no folder {path.parent}")


@dataclass(frozen=True, slots=True)
class LatentFile:
    """A latent; `raw` if the file says that it is what the VAE takes, and not normalised as pipelines have it."""

    latent: Tensor
    raw: bool = False


def read_latents(path: Path, *, key: str | None = None) -> LatentFile:
    """One tensor of a .safetensors, .npy or .latent file; *raises* ConfigurationError naming what is there."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise ConfigurationError(f"{path} is a pickle, which can run code when it is opened; {ADVICE}")
    if suffix not in LATENTS:
        raise ConfigurationError(f"{path} has suffix {path.suffix!r}; latents are read from {', '.join(LATENTS)}")
    if suffix != ".npy":
        return _read_safetensors(path, key)
    with _naming(path, "read"):
        return LatentFile(tensor_of(_read_array(path)))


def _read_array(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise
        except Exception as exc:  # boundary: numpy reads a header as Python code, and raises all that parsers raise
            raise ValueError(f"its header is not one of a .npy file ({type(exc).__name__})") from exc


def _read_safetensors(path: Path, key: str | None) -> LatentFile:
    """Through the raw bytes, since numpy has no bfloat16. *Source*: SaveLatent and LoadLatent of ComfyUI."""
    with _naming(path, "read"):
        tensors = dict(safetensors.deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
    chosen = key or next((name for name in PREFERRED_KEYS if name in tensors), None)
    if chosen is None and len(tensors) == 1:
        chosen = next(iter(tensors))
    if chosen is None or chosen not in tensors:
        raise ConfigurationError(f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}; choose one with --key")
    found = tensors[chosen]
    if found["dtype"] not in DTYPES:
        raise ConfigurationError(f"tensor {chosen!r} in {path} is {found['dtype']}; expected {' or '.join(DTYPES)}")
    with _naming(path, "read"):
        latent = Tensor(DTYPES[found["dtype"]], tuple(found["shape"]), bytes(found["data"]))
    if chosen != COMFYUI_KEY:
        return LatentFile(latent)
    if COMFYUI_MARK not in tensors:
        latent = tensor_of(array_of(latent).astype(np.float32) / np.float32(OLD_COMFYUI_FACTOR))
    return LatentFile(latent, raw=True)


def write_tensor(path: Path, tensor: np.ndarray) -> None:
    """As .safetensors under the name "latents", or as .npy."""
    check_output(path, TENSORS)
    if path.suffix.lower() == ".safetensors":
        write_file(path, save({"latents": np.ascontiguousarray(tensor)}))
        return
    with _naming(path, "written"), path.open("wb") as file:
        np.save(file, tensor)
