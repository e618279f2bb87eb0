"""What lies on a disk as weights, judged by names and headers alone: no library is imported, and no tensor is read."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from remote_vae.errors import ModelLoadError

CONFIG: Final = "config.json"
SAFETENSORS: Final = (".safetensors", ".sft")
PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth")
LONGEST_HEADER: Final = 100_000_000  # the limit of safetensors
STEM: Final = "diffusion_pytorch_model"
SHARD: Final = re.compile(r"(?P<stem>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<variant>(?:\.\w+)?)")
# Of several variants the one with the most digits is taken; weights without the moving average are the last choice.
VARIANTS: Final = ("fp32", "fp16", "bf16")

_PICKLE: Final = "it is a pickle with another name, which can run code when it is opened; convert it to safetensors"
IMPOSTORS: Final = (
    (b"version https://git-lfs", "it is a pointer of Git LFS and not the file itself; fetch that with `git lfs pull`"),
    (b"PK\x03\x04", _PICKLE),
    (b"\x80", _PICKLE),
    (b"GGUF", "it is a GGUF file, and only safetensors are read"),
    (b"<", "it is a web page, perhaps of a download that needs a login"),
    (b"{", "it is JSON text, perhaps the error message of a download"),
)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: how its numbers are stored, in the words of safetensors, and its shape."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


def is_local(source: str) -> bool:
    """Whether a source is a path, even if nothing is there; a hub id is `owner/name`."""
    return (
        source.lower().endswith((*SAFETENSORS, *PICKLES))
        or Path(source).is_dir()
        or source.startswith((".", "/", "~"))
        or (os.sep != "/" and os.sep in source)
    )


def place_of(folder: Path, subfolder: str | None) -> Path:
    """The folder of a VAE, or of a pipeline that has a VAE in vae/."""
    place = folder / (subfolder or "")
    inside = place / "vae"
    return inside if not (place / CONFIG).is_file() and (inside / CONFIG).is_file() else place


def read_config(place: Path) -> dict[str, object]:
    """*Raises* ModelLoadError if there is no config.json, or if it is not a JSON object."""
    if not (place / CONFIG).is_file():
        raise ModelLoadError(f"there is no config.json in folder {str(place)!r}", folder=str(place))
    try:
        config = json.loads((place / CONFIG).read_text())
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ModelLoadError(f"config.json in {str(place)!r} is not a JSON object", folder=str(place))
    return config


def source_file(source: str) -> Path | None:
    """The file that a source names, or None if it names a folder. *Raises* ModelLoadError for a pickle."""
    path = Path(source).expanduser()
    if path.is_dir():
        return None
    if source.lower().endswith(PICKLES):
        raise ModelLoadError(f"{source!r} can run code when it is opened, so only .safetensors files are read")
    return path if source.lower().endswith(SAFETENSORS) else None


def choose_files(place: Path) -> tuple[list[Path], str]:
    """The files of a folder that together are its weights, and the name of the variant if there is no plain one.

    *Raises* ModelLoadError if there are none, if a part is missing, or if nothing says which of several are meant.
    """
    groups: dict[str, dict[Path, int]] = {}
    for path in sorted(place.glob("*.safetensors")):
        name = path.name.removesuffix(path.suffix)
        part = SHARD.fullmatch(name)
        groups.setdefault(part["stem"] + part["variant"] if part else name, {})[path] = (
            int(part["count"]) if part else 1
        )
    if not groups:
        raise ModelLoadError(
            f"folder {str(place)!r} has no .safetensors file; other formats can run code and are not read",
            folder=str(place),
        )
    variants = sorted((key for key in groups if key.startswith(STEM + ".")), key=_rank)
    if STEM not in groups and not variants and len(groups) > 1:
        raise ModelLoadError(
            f"folder {str(place)!r} has several files of weights, {', '.join(groups)}; name one of them",
            folder=str(place),
        )
    chosen = STEM if STEM in groups else next(iter((*variants, *groups)))
    files = groups[chosen]
    count = max(files.values())
    if len(files) != count:
        raise ModelLoadError(
            f"the weights in {str(place)!r} are in {count} parts, of which {len(files)} are there", folder=str(place)
        )
    return list(files), chosen.removeprefix(STEM + ".") if variants and chosen != STEM else ""


def _rank(key: str) -> tuple[bool, int, str]:
    variant = key.removeprefix(STEM + ".")
    return "non_ema" in variant, VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS), variant


def read_headers(files: list[Path]) -> dict[str, Stored]:
    """Every tensor of the files by its name. *Raises* ModelLoadError for what is not a whole safetensors file."""
    return {name: stored for path in files for name, stored in _read_header(path).items()}


def _read_header(path: Path) -> dict[str, Stored]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            length = int.from_bytes(start[:8], "little")
            file.seek(8)
            header = file.read(length) if _is_header(start) else b""
    except OSError as exc:
        raise _refusal(path, f"it cannot be opened ({exc.strerror})") from exc
    if not header:
        why = next((why for sign, why in IMPOSTORS if start.lstrip().startswith(sign)), "it is no safetensors file")
        raise _refusal(path, why if start else "it is empty")
    try:
        document: Mapping[str, Mapping[str, object]] = json.loads(header) if len(header) == length else {}
        tensors = {name: entry for name, entry in document.items() if name != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)  # type: ignore[index]
        found = {
            name: Stored(path, str(entry["dtype"]), tuple(int(side) for side in entry["shape"]))  # type: ignore[attr-defined]
            for name, entry in tensors.items()
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        raise _refusal(path, "its header cannot be read") from exc
    whole = 8 + length + end
    if size < whole:
        raise _refusal(path, f"it is truncated: {size:,} bytes of at least {whole:,} are there; download it again")
    return found


def _is_header(start: bytes) -> bool:
    """Whether a file begins as safetensors do: with the length of a header of JSON, and that."""
    return 1 < int.from_bytes(start[:8], "little") <= LONGEST_HEADER and start[8:9] == b"{"


def _refusal(path: Path, why: str) -> ModelLoadError:
    return ModelLoadError(f"the weights in {str(path)!r} cannot be loaded: {why}", place=str(path))
