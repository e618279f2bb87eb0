"""Weights that were found -> a VAE on a device."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import diffusers
import safetensors
import torch
from diffusers.models.modeling_utils import no_init_weights

from remote_vae.core.filters import arithmetic
from remote_vae.core.has_triton import why_no_triton
from remote_vae.core.own_code import OwnCode
from remote_vae.core.pixels import all_finite
from remote_vae.core.recipe import Recipe
from remote_vae.errors import ModelLoadError
from remote_vae.models.families import family_of, find_model
from remote_vae.models.family import Family, Model
from remote_vae.models.recognise import recipes_for_tensors
from remote_vae.models.spec import ModelSpec, tell
from remote_vae.models.tensors import FLOAT8_NAMES, Fit, fit_tensors, read_tensors
from remote_vae.models.vae import DiffusersVAE
from remote_vae.models.weights import FoundWeights, check_digests, find_weights

RANDOM_SEED: Final = 0


def open_model(spec: ModelSpec, weights: FoundWeights | None) -> tuple[DiffusersVAE, Recipe]:
    """The VAE and its recipe; says on standard error if this machine is slow in the precision that was asked for."""
    vae = _load(spec, weights)
    if isinstance(vae.decoders[0], OwnCode) and arithmetic(vae.dtype, vae.device) is not vae.dtype:
        tell(
            spec.name,
            f"will be slow: diffusers' own code runs it in {spec.dtype}, in which this CPU multiplies slowly; "
            "float32, its default, takes a fraction of the time",
        )
    if vae.device.type == "cuda" and (fault := why_no_triton(vae.device)) is not None:
        tell(spec.name, f"runs without Triton's kernels, so more slowly ({fault}); docs/troubleshooting.md says more")
    return vae, spec.resolve_recipe()


def load(spec: ModelSpec) -> DiffusersVAE:
    """The VAE that a spec describes, in eval mode, in its precision, on its device; *raises* ModelLoadError."""
    return _load(spec, find_weights(spec))


def _load(spec: ModelSpec, weights: FoundWeights | None) -> DiffusersVAE:
    diffusers.utils.logging.set_verbosity_error()  # what matters is raised; its warnings are for scripts
    family = family_of(spec.recipe_model)
    if weights is None:
        module, source, revision = _random(spec), "random weights", f"seed {RANDOM_SEED}"
    else:
        source, revision = weights.source, weights.revision
        module = _loaded(weights, family, spec)
    family.prepare(module)
    device = resolve_device(spec.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # Triton launches kernels there, and events wait there, wherever tensors are
    dtype = resolve_dtype(
        spec, spec.recipe_model, device, force_upcast=bool(getattr(module.config, "force_upcast", False))
    )
    _move(module.eval(), device, dtype, float32=family.float32)
    return DiffusersVAE(module, source=source, revision=revision, family=family)


def _move(module: torch.nn.Module, device: torch.device, dtype: torch.dtype, *, float32: tuple[str, ...]) -> None:
    """To a device and a precision; what is in a part with one of the names `float32` keeps its own precision."""
    kept = {name: tensor.data for name, tensor in _tensors(module) if set(name.split(".")) & set(float32)}
    # Its parameters go on requiring gradients, as in a user's own pipeline: torch's matmul asks them when it chooses
    # between one product and a batch of products, and the two differ in the last bit. No graph is ever built here.
    # By torch's own method: diffusers' warns of layers to be kept in float32 even if a model has none.
    torch.nn.Module.to(module, device, dtype)
    for name, tensor in _tensors(module):
        if name in kept:
            tensor.data = kept[name].to(device)


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU; *raises* ModelLoadError for a device that is not there.

    The device has its number, if its kind has numbers.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        return torch.empty(1, device=(accelerator or "cpu") if name == "auto" else name).device
    except (RuntimeError, AssertionError) as exc:
        raise ModelLoadError(f"device {name!r} cannot be used: {str(exc).splitlines()[0]}", device=name) from exc


def resolve_dtype(spec: ModelSpec, model: Model | None, device: torch.device, *, force_upcast: bool) -> torch.dtype:
    """The precision that was asked for, otherwise float32 on a CPU and the family's own elsewhere.

    float16 becomes float32 if the family's pipelines do the same, because there the weights overflow. bfloat16 does so
    on cards that do not multiply it, unless it was asked for: PyTorch has slow stand-ins there, for some layers none.
    """
    name = spec.dtype or ("float32" if device.type == "cpu" else model.dtype if model else "float16")
    if spec.dtype is None and name == "bfloat16" and device.type == "cuda":
        name = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if name == "float16" and model is not None and model.honours_force_upcast and force_upcast:
        name = "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _random(spec: ModelSpec) -> torch.nn.Module:
    """The architecture of the model of this name with seeded weights; the caller's random state is left alone."""
    model = find_model(spec.name)
    assert model is not None
    assert model.config is not None  # `find_weights` has refused other names
    cls = family_of(model).load_class()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        if model.embedded:
            module: torch.nn.Module = cls.from_config(cls.load_config(Path(__file__).parent / model.name))
        else:
            module = cls(**model.config)
    return module


def _loaded(found: FoundWeights, family: Family, spec: ModelSpec) -> torch.nn.Module:
    """The module with the weights that were found; a single file has the architecture of the recipe's model."""
    model, place, cls = spec.recipe_model, found.place, family.load_class()
    config = (None if model.embedded else model.config) if found.config is None else found.config
    if config is None:
        raise ModelLoadError("a single file does not say its architecture; name a model of the registry as its recipe")
    with _load_errors(place):
        check_digests(found, spec)
        with no_init_weights():
            module = cls(**config) if found.config is None else cls.from_config(dict(config))
        fit = fit_tensors(found.tensors, module, family.convert)
    if not fit.whole:
        raise _misfit(found, fit, spec)
    with _load_errors(place):
        module.load_state_dict(read_tensors(fit, found.tensors, module, family.convert), strict=False)
    float8 = sorted({found.tensors[fit.prefix + name].dtype for name in fit.names} & FLOAT8_NAMES.keys())
    if float8:
        scaled = " and multiplied by their scales" if fit.scales else ""
        kinds = " and ".join(FLOAT8_NAMES[kind] for kind in float8)
        tell(spec.name, f"has weights in {kinds}, which are widened{scaled}; they keep the precision of float8")
    _refuse_infinite(place, module)
    loaded: torch.nn.Module = module
    return loaded


def _misfit(found: FoundWeights, fit: Fit, spec: ModelSpec) -> ModelLoadError:
    """Why tensors are not those of the architecture, and for a single file the recipes that are for them."""
    half, place = fit.lone_half(), str(found.place)
    why = fit.explain()
    if half:
        why = f"they are {half} alone, and a VAE is served with both halves: {why}"
    elif not fit.found:
        why = f"they hold no VAE of recipe {spec.recipe or spec.name!r}: {why}"
    else:
        why = f"they are of another architecture: {why}"
    fitting = ", ".join(recipes_for_tensors(found.tensors)) if found.config is None else ""
    return ModelLoadError(
        f"the weights in {place!r} cannot be used; {why}" + (f"; recipes for them: {fitting}" if fitting else ""),
        place=place,
    )


@contextlib.contextmanager
def _load_errors(place: Path) -> Iterator[None]:
    """Turns what diffusers and safetensors raise for broken weights into one sentence."""
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
