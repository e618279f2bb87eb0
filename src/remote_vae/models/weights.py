"""Where the weights of a spec are: on the hub, in a folder, in one safetensors file, or in the package.

What config.json can tell is judged here, before the weights are fetched and before diffusers is imported. Weights are
read from safetensors only, and no code comes with them: a pickle never gets as far as being opened.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from remote_vae.errors import ModelLoadError
from remote_vae.models.families import family_of, find_model, refuse_other_weights
from remote_vae.models.family import FACTORS
from remote_vae.models.files import (
    CONFIG,
    STEM,
    Stored,
    choose_files,
    is_local,
    place_of,
    read_config,
    read_headers,
    source_file,
)
from remote_vae.models.hub import fetch
from remote_vae.models.spec import ModelSpec, tell

DIGEST_BLOCK: Final = 1 << 20
# A star matches slashes too: a pattern that begins with one would fetch every model of a pipeline's repository.
WEIGHTS: Final = (f"{STEM}*.safetensors", f"{STEM}*.safetensors.index.json")
# What is left out when weights are fetched: only if a repository has nothing else, a variant is taken.
IGNORED: Final = (("*.fp16*", "*.bf16*", "*non_ema*"), ("*.bf16*", "*non_ema*"), ())


@dataclass(frozen=True, slots=True)
class FoundWeights:
    """The tensors of a folder in diffusers' layout, with its config, or of one file, which has none."""

    place: Path
    config: Mapping[str, object] | None
    tensors: Mapping[str, Stored]
    source: str
    revision: str = ""


def find_weights(spec: ModelSpec) -> FoundWeights | None:
    """The weights of a spec, or None if they are to be random; *raises* ModelLoadError."""
    model = find_model(spec.name)
    package = family_of(spec.recipe_model).lacks()
    if package:
        raise ModelLoadError(f"model {spec.name!r} needs the package {package}: pip install {package}")
    if spec.random_weights:
        if model is None or model.config is None:
            raise ModelLoadError(f"the architecture of model {spec.name!r} is not known here; name its weights")
        config = {"_class_name": family_of(model).cls, **model.config}
        refuse_other_weights(config, spec.recipe or spec.name, "random weights")
        return None
    if spec.source is None and model is not None and model.embedded:
        return _folder(Path(__file__).parent / model.name, spec, None, source="embedded")
    if spec.source is None or not is_local(spec.source):
        return _from_hub(spec)
    path = source_file(spec.source)
    if path is not None:
        return FoundWeights(path, None, read_headers([path]), path.name)
    return _folder(Path(spec.source).expanduser(), spec, spec.subfolder, source=Path(spec.source).name)


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
    folder = fetch(repository, spec.revision, [prefix + CONFIG for prefix in prefixes])
    _judge(place_of(folder, subfolder), spec)
    for ignored in IGNORED:
        # The commit of the config that was judged, in case somebody pushes to the branch in between.
        folder = fetch(repository, folder.name, [prefix + name for prefix in prefixes for name in WEIGHTS], ignored)
        if any(place_of(folder, subfolder).glob(WEIGHTS[0])):
            break
    return _folder(folder, spec, subfolder, source=repository, revision=folder.name)


def _folder(folder: Path, spec: ModelSpec, subfolder: str | None, *, source: str, revision: str = "") -> FoundWeights:
    place = place_of(folder, subfolder)
    config, factors = _judge(place, spec)
    files, variant = choose_files(place)
    if variant:
        tell(spec.name, f"has its weights as variant {variant} only, which is taken")
    if factors:
        tell(spec.name, f"states no factors in its config; {spec.recipe or spec.name}'s are taken: {_shown(factors)}")
    return FoundWeights(place, {**config, **factors}, read_headers(files), source, revision)


def _judge(place: Path, spec: ModelSpec) -> tuple[Mapping[str, object], Mapping[str, object]]:
    """The config, and the factors that it lacks: the class's defaults would be those of another model.

    *Raises* ModelLoadError if there is no config, or if the recipe is not one for these weights.
    """
    config, model = read_config(place), spec.recipe_model
    cls, known, factors = family_of(model).cls, model.config or {}, {}
    if config.get("_class_name", cls) == cls and config.get("scaling_factor") is config.get("latents_mean") is None:
        factors = {name: known[name] for name in FACTORS if name in known and config.get(name) is None}
    refuse_other_weights({**config, **factors}, spec.recipe or spec.name, str(place))
    return config, factors


def _shown(factors: Mapping[str, object]) -> str:
    return ", ".join(name if isinstance(value, tuple) else f"{name} {value}" for name, value in factors.items())


def check_digests(found: FoundWeights, spec: ModelSpec) -> None:
    """Against the digest of the spec, NAME.sha256 beside a file of weights, and a file's name in the hub's cache."""
    files = sorted({tensor.path for tensor in found.tensors.values()})
    if spec.sha256 is not None:
        _refuse_other_digest(found.place, files, spec.sha256.lower())
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
