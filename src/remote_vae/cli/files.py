"""Latents and pictures in files. Whatever is wrong with a file is a ConfigurationError that names it."""

import contextlib
import json
import re
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import safetensors
from safetensors.numpy import save

from remote_vae.cli.caches import RAW_ARCHITECTURES, RAW_CACHES
from remote_vae.client.latents import array_of, tensor_of
from remote_vae.errors import ConfigurationError, InvalidValue
from remote_vae.values import Tensor

TENSORS = (".safetensors", ".npy")
LATENTS = (*TENSORS, ".latent", ".npz")
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PREFERRED_KEYS = ("latents", "latent", "samples", "latent_tensor")
COMFYUI_KEY = "latent_tensor"
COMFYUI_MARK = "latent_format_version_0"  # without it, the file is of a time when ComfyUI kept latents scaled as SD 1's
OLD_COMFYUI_FACTOR = 0.18215
CACHED = re.compile(r"latents(_\d+(x\d+)+)?(_[a-z]\w*)?")  # what trainers call the latent among a cache's tensors
NOT_LATENTS = ("latents_image", "latents_control", "latents_flipped", "latents_mask", "latents_clean")
OLD_CACHE = {"original_size", "crop_ltrb"}  # beside the latent of SD 1 or SDXL, whose caches had no such names
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


def check_output(path: Path, suffixes: Collection[str], form: str | None = None) -> None:
    """Refuses, before any work is done, what could not be written in the end. `form` stands for the path's suffix."""
    if form not in suffixes and form is not None:
        raise ConfigurationError(f"{form[1:]!r} is no format; expected one of {', '.join(one[1:] for one in suffixes)}")
    if form is None and path.suffix.lower() not in suffixes:
        raise ConfigurationError(f"{path} has suffix {path.suffix!r}; expected one of {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{path} cannot be written: there is no folder {path.parent}")


@dataclass(frozen=True, slots=True)
class LatentFile:
    """A latent; `raw` if the file says that it is what the VAE takes, and not normalised as pipelines have it.

    `raw` is None if such a file can be either, and this one does not say.
    """

    latent: Tensor
    raw: bool | None = False


def read_latents(path: Path, *, key: str | None = None) -> LatentFile:
    """One tensor of a file; *raises* ConfigurationError naming what is there."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise ConfigurationError(f"{path} is a pickle, which can run code when it is opened; {ADVICE}")
    if suffix not in LATENTS:
        raise ConfigurationError(f"{path} has suffix {path.suffix!r}; latents are read from {', '.join(LATENTS)}")
    if suffix == ".npz":
        return _read_npz(path, key)
    if suffix != ".npy":
        return _read_safetensors(path, key)
    with _naming(path, "read"), path.open("rb") as file:
        return LatentFile(_read_array(file))


def _read_array(file: IO[bytes]) -> Tensor:
    """numpy has no bfloat16, so that files of it name two bytes without a type."""
    try:
        array = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise
    except Exception as exc:  # boundary: numpy reads a header as Python code, and raises all that parsers raise
        raise ValueError(f"its header is not one of a .npy file ({type(exc).__name__})") from exc
    if array.dtype == np.dtype("V2"):
        return Tensor("bfloat16", array.shape, array.tobytes())
    return tensor_of(array)


def _read_npz(path: Path, key: str | None) -> LatentFile:
    """*Source*: the caches of kohya's sd-scripts, library/strategy_base.py and the strategies beside it."""
    with _naming(path, "read"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = {name.removesuffix(".npy"): name for name in archive.namelist()}
                chosen = _choose(path, names, key)
                with archive.open(names[chosen]) as file:
                    latent = _read_array(file)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as exc:
            raise ValueError(f"it is not a whole .npz file: {exc}") from exc
    raw = next((raw for end, raw in RAW_CACHES.items() if path.stem.endswith(end)), None)
    if raw is None and names.keys() >= OLD_CACHE:
        raw = True
    return LatentFile(latent, raw)


def _choose(path: Path, names: Iterable[str], key: str | None) -> str:
    """The tensor with the name `key`, otherwise the one that is the latent; *raises* ConfigurationError."""
    found = sorted(names)
    chosen = key or next((name for name in PREFERRED_KEYS if name in found), None)
    cached = [name for name in found if CACHED.fullmatch(name) and not name.startswith(NOT_LATENTS)]
    if chosen is None and len(cached) == 1:
        [chosen] = cached
    if chosen is None and len(found) == 1:
        [chosen] = found
    if chosen is None or chosen not in found:
        raise ConfigurationError(f"{path} holds {', '.join(found) or 'nothing'}; choose one with --key")
    return chosen


def _read_safetensors(path: Path, key: str | None) -> LatentFile:
    """Through the raw bytes, since numpy has no bfloat16.

    *Source*: SaveLatent and LoadLatent of ComfyUI; the caches of musubi-tuner, dataset/image_video_dataset.py.
    """
    with _naming(path, "read"):
        data = path.read_bytes()
        tensors = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    chosen = _choose(path, tensors, key)
    found = tensors[chosen]
    if found["dtype"] not in DTYPES:
        raise ConfigurationError(f"tensor {chosen!r} in {path} is {found['dtype']}; expected {' or '.join(DTYPES)}")
    with _naming(path, "read"):
        latent = Tensor(DTYPES[found["dtype"]], tuple(found["shape"]), bytes(found["data"]))
    if chosen != COMFYUI_KEY:
        return LatentFile(latent, _metadata(data).get("architecture") in RAW_ARCHITECTURES)
    if COMFYUI_MARK not in tensors:
        latent = tensor_of(array_of(latent).astype(np.float32) / np.float32(OLD_COMFYUI_FACTOR))
    return LatentFile(latent, raw=True)


def _metadata(data: bytes) -> Mapping[str, str]:
    """What a safetensors file that has been read says besides its tensors."""
    found: Mapping[str, str] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    return found


def write_tensor(path: Path, tensor: np.ndarray, form: str | None = None) -> None:
    """As .safetensors under the name "latents", or as .npy; by `form` if it is given, otherwise by the suffix."""
    check_output(path, TENSORS, form)
    if (form or path.suffix.lower()) == ".safetensors":
        write_file(path, save({"latents": np.ascontiguousarray(tensor)}))
        return
    with _naming(path, "written"), path.open("wb") as file:
        np.save(file, tensor)
