"""Where the weights of a spec are: on the hub, in a folder, in one safetensors file, or in the package.

What config.json can tell is judged here, before the weights are fetched and before diffusers is imported. Weights are
read from safetensors only, and no code comes with them: a pickle never gets as far as being opened.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from remote_vae.errors import ModelLoadError
from remote_vae.models.families import family_of, find_model, refuse_other_weights
from remote_vae.models.spec import ModelSpec

PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth")
DIGEST_BLOCK: Final = 1 << 20
CONFIG: Final = "config.json"
# A star matches slashes too: a pattern that begins with one would fetch every model of a pipeline's repository.
WEIGHTS: Final = ("diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """A folder in diffusers' layout, with its config, or one file, which has none."""

    place: Path
    config: Mapping[str, object] | None
    source: str
    revision: str = ""


def find_weights(spec: ModelSpec) -> FoundWeights | None:
    """The weights of a spec, or None if they are to be random; *raises* ModelLoadError."""
    model = find_model(spec.name)
    if spec.random_weights:
        if model is None or model.config is None:
            raise ModelLoadError(f"the architecture of model {spec.name!r} is not known here; name its weights")
        config = {"_class_name": family_of(model).cls, **model.config}
        refuse_other_weights(config, spec.recipe or spec.name, "random weights")
        return None
    if spec.source is None and model is not None and model.embedded:
        return _folder(Path(__file__).parent / model.name, spec, None, source="embedded")
    if spec.source is None or not _is_local(spec.source):
        return _from_hub(spec)
    path = Path(spec.source).expanduser()
    if spec.source.endswith(PICKLES):
        raise ModelLoadError(f"{spec.source!r} can run code when it is opened, so only .safetensors files are read")
    if spec.source.endswith(".safetensors"):
        return FoundWeights(path, None, path.name)
    return _folder(path, spec, spec.subfolder, source=Path(spec.source).name)


def _is_local(source: str) -> bool:
    """Whether a source is a path, even if nothing is there; a hub id is `owner/name`."""
    return (
        source.endswith((".safetensors", *PICKLES))
        or Path(source).is_dir()
        or source.startswith((".", "/", "~"))
        or (os.sep != "/" and os.sep in source)
    )


def _from_hub(spec: ModelSpec) -> FoundWeights:
    """Only the config and the safetensors of one subfolder; HF_TOKEN, HF_HOME and HF_HUB_OFFLINE work as usual."""
    model = find_model(spec.name)
    if spec.source is None and model is not None and model.file is not None:
        raise ModelLoadError(
            f"the weights of model {spec.name!r} are published as a file, at {model.file}; fetch it, and name it as "
            f"{spec.name}=FILE.safetensors",
            file=model.file,
        )
    repository = spec.source or (model.repository if model else None)
    subfolder = spec.subfolder or (model.subfolder if model and spec.source is None else None)
    if repository is None:
        raise ModelLoadError(f"model {spec.name!r} has no source")
    prefixes = [f"{subfolder}/"] if subfolder else ["", "vae/"]
    folder = _fetch(repository, spec.revision, [prefix + CONFIG for prefix in prefixes])
    _read_config(_place(folder, subfolder), spec)
    # The commit of the config that was judged, in case somebody pushes to the branch in between.
    folder = _fetch(repository, folder.name, [prefix + name for prefix in prefixes for name in WEIGHTS])
    return _folder(folder, spec, subfolder, source=repository, revision=folder.name)


def _fetch(repository: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=["*.fp16.*", "*.bf16.*", "*non_ema*"],
            )
        )
    except Exception as exc:  # boundary: what the hub's client raises depends on its version and on the network
        raise ModelLoadError(
            f"{repository!r} cannot be had from the hub ({type(exc).__name__}); is the name right, is there a network, "
            "and does HF_TOKEN allow it?",
            repository=repository,
        ) from exc


def _folder(folder: Path, spec: ModelSpec, subfolder: str | None, *, source: str, revision: str = "") -> FoundWeights:
    place = _place(folder, subfolder)
    config = _read_config(place, spec)
    if not any(place.glob("*.safetensors")):
        raise ModelLoadError(
            f"folder {str(place)!r} has no .safetensors file; other formats can run code and are not read",
            folder=str(place),
        )
    return FoundWeights(place, config, source, revision)


def _place(folder: Path, subfolder: str | None) -> Path:
    """The folder of a VAE, or of a pipeline that has a VAE in vae/."""
    place = folder / (subfolder or "")
    inside = place / "vae"
    return inside if not (place / CONFIG).is_file() and (inside / CONFIG).is_file() else place


def _read_config(place: Path, spec: ModelSpec) -> Mapping[str, object]:
    """*Raises* ModelLoadError if there is none, or if the recipe is not one for these weights."""
    if not (place / CONFIG).is_file():
        raise ModelLoadError(f"there is no config.json in folder {str(place)!r}", folder=str(place))
    try:
        config = json.loads((place / CONFIG).read_text())
        refuse_other_weights(dict(config.items()), spec.recipe or spec.name, str(place))
    except (ValueError, AttributeError, TypeError) as exc:
        raise ModelLoadError(f"config.json in {str(place)!r} is not a JSON object", folder=str(place)) from exc
    return dict(config)


def check_digests(place: Path, files: list[Path], spec: ModelSpec) -> None:
    """Against the digest of the spec, NAME.sha256 beside a file of weights, and a file's name in the hub's cache."""
    if spec.sha256 is not None:
        _refuse_other_digest(place, files, spec.sha256.lower())
    for path in files:
        beside, cached = path.with_name(path.name + ".sha256"), path.resolve().name
        if beside.is_file():
            _refuse_other_digest(path, [path], beside.read_text().partition(" ")[0].strip().lower())
        elif path.is_symlink() and len(cached) == 2 * hashlib.sha256().digest_size:
            _refuse_other_digest(path, [path], cached)


def _refuse_other_digest(place: Path, files: list[Path], expected: str) -> None:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(DIGEST_BLOCK):
                digest.update(block)
    if digest.hexdigest() != expected:
        raise ModelLoadError(
            f"the weights in {str(place)!r} have sha256 {digest.hexdigest()}, not {expected}", place=str(place)
        )
