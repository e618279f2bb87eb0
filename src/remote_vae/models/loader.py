"""A spec -> a VAE on a device: from the hub, a folder, one safetensors file, the package, or seeded random weights.

Weights are read from safetensors only, and no code comes with them: a pickle never gets as far as being opened.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import diffusers
import safetensors
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from huggingface_hub import snapshot_download
from safetensors.torch import load_file

from remote_vae.core.filters import arithmetic
from remote_vae.core.pixels import all_finite
from remote_vae.core.recipe import Recipe
from remote_vae.errors import ModelLoadError
from remote_vae.models.registry import REGISTRY, Row, find_row
from remote_vae.models.spec import ModelSpec
from remote_vae.models.vae import DiffusersVAE

CLASSES = {
    "AutoencoderKL": diffusers.AutoencoderKL,
    "AutoencoderKLFlux2": diffusers.AutoencoderKLFlux2,
    "AutoencoderKLHunyuanVideo": diffusers.AutoencoderKLHunyuanVideo,
    "AutoencoderTiny": diffusers.AutoencoderTiny,
}
RANDOM_SEED = 0
DIGEST_BLOCK = 1 << 20
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# A star matches slashes too: one that came first would fetch every model of a pipeline's repository.
HUB_FILES = ("config.json", "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.safetensors.index.json")


def open_model(found: dict[str, object]) -> tuple[DiffusersVAE, Recipe]:
    """What a replica calls, with a spec as JSON values."""
    diffusers.utils.logging.set_verbosity_error()  # what matters is raised; its warnings are for scripts
    spec = ModelSpec.from_json(found)
    vae = load(spec)
    if vae.decoder is None and arithmetic(vae.dtype, vae.device) is not vae.dtype:
        print(
            f"remote-vae: model {spec.name!r} will be slow: diffusers' own code runs it in {spec.dtype}, in which this "
            "CPU multiplies slowly; float32, its default, takes a fraction of the time",
            file=sys.stderr,
            flush=True,
        )
    return vae, spec.resolve_recipe()


def load(spec: ModelSpec) -> DiffusersVAE:
    """The VAE that a spec describes, in eval mode, in its precision, on its device; *raises* ModelLoadError."""
    row = find_row(spec.name)
    if spec.random_weights:
        module, source, revision = _random(spec, row), "random weights", f"seed {RANDOM_SEED}"
    elif spec.source is None and row is not None and row.repository is None:
        with resources.as_file(resources.files("remote_vae.models") / row.name) as folder:
            module, source, revision = _from_folder(folder, spec), "embedded", ""
    elif spec.source is not None and spec.source.endswith(".safetensors"):
        module, source, revision = _from_file(Path(spec.source), spec), Path(spec.source).name, ""
    elif spec.source is not None and spec.source.endswith(PICKLES):
        raise ModelLoadError(f"{spec.source!r} can run code when it is opened, so only .safetensors files are read")
    elif spec.source is not None and _is_folder(spec.source):
        module, source, revision = _from_folder(Path(spec.source), spec), Path(spec.source).name, ""
    else:
        module, source, revision = _from_hub(spec, row)
    device = resolve_device(spec.device)
    policy = find_row(spec.recipe or spec.name) or row
    dtype = resolve_dtype(spec, policy, device, force_upcast=bool(getattr(module.config, "force_upcast", False)))
    norm = module._modules.pop("bn", None)  # FLUX.2's statistics, which no layer computes with, stay in float32
    # Its parameters go on requiring gradients, as in a user's own pipeline: torch's matmul asks them when it chooses
    # between one product and a batch of products, and the two differ in the last bit. No graph is ever built here.
    # By torch's own method: diffusers' warns of layers to be kept in float32 even where a model has none.
    module = torch.nn.Module.to(module.eval(), device, dtype)
    if norm is not None:
        module.add_module("bn", norm.to(device))
    _refuse_wrong_recipe(module, spec.resolve_recipe())
    return DiffusersVAE(module, source=source, revision=revision)


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU; *raises* ModelLoadError for a device that is not there."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as exc:
        raise ModelLoadError(f"device {name!r} cannot be used: {str(exc).splitlines()[0]}", device=name) from exc
    return device


def resolve_dtype(spec: ModelSpec, row: Row | None, device: torch.device, *, force_upcast: bool) -> torch.dtype:
    """What was asked for, else float32 on a CPU and the family's own elsewhere.

    float16 becomes float32 where the family's pipelines do the same: there the weights overflow.
    """
    name = spec.dtype or ("float32" if device.type == "cpu" else row.dtype if row else "float16")
    if name == "float16" and row is not None and row.honours_force_upcast and force_upcast:
        name = "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _refuse_wrong_recipe(module: torch.nn.Module, recipe: Recipe) -> None:
    """FLUX.2's latents are normalised by statistics that no other weights have, and by no factors."""
    cls, ours = type(module).__name__, [row.recipe for row in REGISTRY.values() if row.cls == "AutoencoderKLFlux2"]
    if (cls == "AutoencoderKLFlux2") != (recipe.name in ours):
        raise ModelLoadError(
            f"the weights are of {cls}, for which recipe {recipe.name!r} would give a wrong picture; {', '.join(ours)} "
            "are the recipes of AutoencoderKLFlux2, and of no other",
            cls=cls,
            recipe=recipe.name,
        )


def _is_folder(source: str) -> bool:
    """A path, whether it exists or not; a hub id is `owner/name` and nothing there."""
    return Path(source).is_dir() or source.startswith((".", "/", "~")) or (os.sep != "/" and os.sep in source)


def _random(spec: ModelSpec, row: Row | None) -> torch.nn.Module:
    if row is None:
        raise ModelLoadError(f"model {spec.name!r} is not in the registry, so its architecture is not known")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        if row.repository is None:
            with resources.as_file(resources.files("remote_vae.models") / row.name) as folder:
                config = CLASSES[row.cls].load_config(folder)
            module: torch.nn.Module = CLASSES[row.cls].from_config(config)
        else:
            module = CLASSES[row.cls](**row.config)
    return module


def _from_hub(spec: ModelSpec, row: Row | None) -> tuple[torch.nn.Module, str, str]:
    """Only the config and the safetensors of one subfolder; HF_TOKEN, HF_HOME and HF_HUB_OFFLINE work as usual."""
    repository = spec.source or (row.repository if row else None)
    subfolder = spec.subfolder or (row.subfolder if row and spec.source is None else None)
    if repository is None:
        raise ModelLoadError(f"model {spec.name!r} has no source")
    prefixes = [f"{subfolder}/"] if subfolder else ["", "vae/"]
    try:
        path = snapshot_download(
            repository,
            revision=spec.revision,
            allow_patterns=[prefix + name for prefix in prefixes for name in HUB_FILES],
            ignore_patterns=["*.fp16.*", "*.bf16.*", "*non_ema*"],
        )
    except Exception as exc:  # boundary: what the hub's client raises depends on its version and on the network
        raise ModelLoadError(
            f"{repository!r} cannot be had from the hub ({type(exc).__name__}); is the name right, is there a network, "
            "and does HF_TOKEN allow it?",
            repository=repository,
        ) from exc
    revision = Path(path).name
    return _from_folder(Path(path), spec, subfolder=subfolder), repository, revision


def _from_folder(folder: Path, spec: ModelSpec, *, subfolder: str | None = None) -> torch.nn.Module:
    """A folder in diffusers' layout: of a VAE, or of a pipeline that has one in vae/."""
    folder = folder.expanduser()
    place = folder / (subfolder or spec.subfolder or "")
    if not (place / "config.json").is_file() and (place / "vae" / "config.json").is_file():
        place = place / "vae"
    if not (place / "config.json").is_file():
        raise ModelLoadError(f"there is no config.json in folder {str(place)!r}", folder=str(place))
    if not any(place.glob("*.safetensors")):
        raise ModelLoadError(
            f"folder {str(place)!r} has no .safetensors file; other formats can run code and are not read",
            folder=str(place),
        )
    try:
        name = str(json.loads((place / "config.json").read_text()).get("_class_name", "AutoencoderKL"))
    except (ValueError, AttributeError) as exc:
        raise ModelLoadError(f"config.json in {str(place)!r} is not a JSON object", folder=str(place)) from exc
    if name not in CLASSES:
        raise ModelLoadError(f"{str(place)!r} holds a {name}; supported are {', '.join(CLASSES)}", cls=name)
    files = sorted(place.glob("*.safetensors"))
    with _load_errors(place):
        _check_digests(place, files, spec)
        module, report = CLASSES[name].from_pretrained(
            place, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    _refuse_wrong_keys(place, missing=report["missing_keys"], unexpected=report["unexpected_keys"])
    found: torch.nn.Module = module
    _refuse_infinite(place, found)
    return found


def _from_file(path: Path, spec: ModelSpec) -> torch.nn.Module:
    """One safetensors file, with diffusers' names or the original ones; the architecture is the registry's."""
    path = path.expanduser()
    row = find_row(spec.recipe or spec.name) or find_row(spec.name)
    if row is None or row.repository is None:
        raise ModelLoadError("a single file does not say its architecture; name a model of the registry as its recipe")
    with _load_errors(path):
        _check_digests(path, [path], spec)
        weights = load_file(path)
    module: torch.nn.Module = CLASSES[row.cls](**row.config)
    prefix = "first_stage_model."
    if any(key.startswith(prefix) for key in weights):
        weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    if row.cls == "AutoencoderKL" and "encoder.down.0.block.0.conv1.weight" in weights:
        weights = convert_ldm_vae_checkpoint(weights, module.config)
    with _load_errors(path):
        keys = module.load_state_dict(weights, strict=False)
    _refuse_wrong_keys(path, missing=keys.missing_keys, unexpected=keys.unexpected_keys)
    _refuse_infinite(path, module)
    return module


def _check_digests(place: Path, files: list[Path], spec: ModelSpec) -> None:
    """Against the one that was given, NAME.sha256 beside a file of weights, and a file's name in the hub's cache."""
    if spec.sha256 is not None:
        _refuse_other_digest(place, files, spec.sha256.lower())
    for path in files:
        beside, cached = path.with_name(path.name + ".sha256"), path.resolve().name
        if beside.is_file():
            _refuse_other_digest(path, [path], beside.read_text().partition(" ")[0].strip().lower())
        elif path.is_symlink() and len(cached) == 2 * hashlib.sha256().digest_size:
            _refuse_other_digest(path, [path], cached)


def _refuse_other_digest(place: Path, files: list[Path], expected: str) -> None:
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(DIGEST_BLOCK):
                found.update(block)
    if found.hexdigest() != expected:
        raise ModelLoadError(
            f"the weights in {str(place)!r} have sha256 {found.hexdigest()}, not {expected}", place=str(place)
        )


@contextlib.contextmanager
def _load_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, safetensors.SafetensorError) as exc:
        raise ModelLoadError(
            f"the weights in {str(place)!r} cannot be loaded: {' '.join(str(exc).split())[:300]}",
            place=str(place),
        ) from exc


def _refuse_infinite(place: Path, module: torch.nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not all_finite(tensor):
            raise ModelLoadError(f"the weights in {str(place)!r} hold NaN or infinity, in {name}", place=str(place))


def _refuse_wrong_keys(place: Path, *, missing: list[str], unexpected: list[str]) -> None:
    if missing or unexpected:
        raise ModelLoadError(
            f"the weights in {str(place)!r} are of another architecture: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}), {len(unexpected)} are unknown ({', '.join(unexpected[:3])})",
            place=str(place),
        )
