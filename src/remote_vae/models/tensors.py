"""The tensors of a VAE among those of files: under which prefix, by which names, and how their numbers are stored."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from safetensors import safe_open

from remote_vae.models.family import Weights
from remote_vae.models.files import Stored

Convert = Callable[[Weights, Any], Weights]
Shape = tuple[int, ...]

HALVES: Final = ("encoder", "decoder")
PREFIXES: Final = ("first_stage_model.", "vae.", "vqgan.")
HALF: Final = re.compile(r"(?:^|(?<=\.))(?:encoder|decoder)\.")
COUNTER: Final = "num_batches_tracked"  # only training uses it, and not every file has it
# What training leaves in a file, and what stands beside the VAE in a file of a whole pipeline.
OTHERS: Final = re.compile(
    r"(?:loss|model_ema|discriminator|optimizer|lr_scheduler|(?:model\.)?diffusion_model|cond_stage_model|conditioner"
    r"|text_encoders)\."
)
SCALED: Final = ("scale_weight", "weight_scale")
# Beside quantised weights: their scales, those for what a layer takes, and notes on the format.
BESIDE: Final = re.compile(r"(?:.*\.)?(?:scale_weight|weight_scale|scale_input|input_scale|scaled_fp8|comfy_quant)")
OLD_ATTENTION: Final = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
FLOAT8: Final = (torch.float8_e4m3fn, torch.float8_e5m2)
FLOAT8_NAMES: Final = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}  # as safetensors and torch have them
READABLE: Final = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class UnreadableTensor(ValueError):
    """A tensor with numbers that cannot be read; the message says how they are stored."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How the tensors of files and those of a module go together.

    `names` are the tensors of the files that belong to the VAE, by their names after the `prefix`; `scales` those that
    say how float8 weights are to be multiplied. `missing`, `unknown` and `misshapen` tell what does not go together.
    """

    prefix: str
    names: tuple[str, ...]
    scales: tuple[str, ...]
    wanted: Mapping[str, Shape]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    misshapen: Mapping[str, Shape]

    @property
    def whole(self) -> bool:
        return not (self.missing or self.unknown or self.misshapen)

    @property
    def found(self) -> int:
        return len(self.wanted) - len(self.missing)

    def lone_half(self) -> str:
        """`encoder` or `decoder` if the files hold nothing of the other half; otherwise empty."""
        for half, other in (HALVES, HALVES[::-1]):
            own, others = (self._of(name) for name in (half, other))
            if own and others and not own & set(self.missing) and others <= set(self.missing):
                return half
        return ""

    def explain(self) -> str:
        """Why the tensors are not the module's, in numbers and the first names."""
        reasons = [
            f"{len(names)} {what} ({', '.join(names[:3])})"
            for names, what in ((self.missing, "tensors are missing"), (self.unknown, "are unknown"))
            if names
        ]
        reasons += [
            f"{name} has the shape {list(shape)} and not {list(self.wanted[name])}"
            for name, shape in list(self.misshapen.items())[:2]
        ]
        return ", ".join(reasons)

    def _of(self, half: str) -> set[str]:
        return {name for name in self.wanted if name.startswith(half + ".")}


def fit_tensors(stored: Mapping[str, Stored], module: Any, convert: Convert) -> Fit:
    """The prefix under which most tensors of the module are found; names are the family's own, or the original ones."""
    fits = [_fit_under(prefix, stored, module, convert) for prefix in _prefixes(stored)]
    return max(fits, key=lambda fit: (fit.whole, fit.found))


def _prefixes(names: Iterable[str]) -> list[str]:
    """What may stand before the VAE's own names: what is usual, and all that stands before `encoder.` or `decoder.`."""
    found = {name[: match.start()] for name in names if (match := HALF.search(name))}
    usual = {prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in names)}
    return sorted({"", *usual, *found}, key=lambda prefix: ("ema" in prefix, len(prefix), prefix))


def _fit_under(prefix: str, stored: Mapping[str, Stored], module: Any, convert: Convert) -> Fit:
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    inside = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    inside = {name: tensor for name, tensor in inside.items() if not OTHERS.match(name)}
    scales = {name for name in inside if BESIDE.fullmatch(name)}
    names = tuple(name for name in inside if name not in scales)
    given = {name: torch.empty(inside[name].shape, device="meta") for name in names}
    found = {name: tuple(tensor.shape) for name, tensor in rename(given, module, convert).items()}
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    return Fit(
        prefix,
        names,
        tuple(sorted(scales)),
        wanted,
        missing=tuple(name for name in wanted if name not in found and not name.endswith(COUNTER)),
        unknown=tuple(
            name for name in found if name not in wanted and not any(re.search(sign, name) for sign in ignored)
        ),
        misshapen={name: found[name] for name in wanted if name in found and not _same(found[name], wanted[name])},
    )


def rename(weights: Weights, module: Any, convert: Convert) -> Weights:
    """Tensors by the names of the module, also if diffusers saved them before it renamed the layers of attention."""
    try:
        converted = convert(dict(weights), module)
    except (LookupError, ValueError, TypeError, RuntimeError):
        converted = weights  # the names are of another family, with which its converter cannot do anything
    wanted = module.state_dict().keys()
    return {name if name in wanted else _of_today(name, wanted): tensor for name, tensor in converted.items()}


def _of_today(name: str, wanted: Iterable[str]) -> str:
    place, _, last = name.rpartition(".")
    for old, new in OLD_ATTENTION:
        if place.endswith("." + old) and (today := f"{place.removesuffix(old)}{new}.{last}") in wanted:
            return today
    return name


def _same(found: Shape, wanted: Shape) -> bool:
    """Whether shapes differ in sides of 1 alone, as a convolution of 1 by 1 does from a linear layer."""
    return [side for side in found if side != 1] == [side for side in wanted if side != 1]


def read_tensors(fit: Fit, stored: Mapping[str, Stored], module: Any, convert: Convert) -> Weights:
    """The weights of a module out of files that fit. *Raises* UnreadableTensor."""
    names = {fit.prefix + name: name for name in (*fit.names, *fit.scales)}
    read: Weights = {}
    for path in dict.fromkeys(stored[name].path for name in names):
        with safe_open(path, framework="pt") as file:
            read.update({names[name]: file.get_tensor(name) for name in names if stored[name].path == path})
    weights = {name: _widened(name, read) for name in fit.names}
    _refuse_lacking_scales(weights, read, fit.scales)
    module_weights = module.state_dict()
    ready = {}
    for name, tensor in rename(weights, module, convert).items():
        if name not in fit.wanted:
            continue
        if module_weights[name].is_floating_point() and tensor.dtype not in READABLE:
            raise UnreadableTensor(f"{name} is stored as {_dtype(tensor)}, which cannot be read")
        ready[name] = tensor.reshape(fit.wanted[name])
    return ready


def _widened(name: str, read: Weights) -> torch.Tensor:
    """A tensor of float8 as float32, multiplied by its scale if it has one; another as it is."""
    tensor, scale = read[name], _scale_of(name, read)
    if scale is None:
        return tensor.float() if tensor.dtype in FLOAT8 else tensor
    if tensor.dtype not in FLOAT8:
        raise UnreadableTensor(f"{name} is stored as {_dtype(tensor)} with a scale, which cannot be read")
    by_row = scale.ndim > 0 and scale.numel() == scale.shape[0] == tensor.shape[0]
    if scale.dtype not in READABLE or not (scale.numel() == 1 or by_row):
        raise UnreadableTensor(
            f"the scales of {name} have the shape {list(scale.shape)} and are stored as {_dtype(scale)}; one for a "
            "tensor or for each of its rows can be read, and those of blocks cannot"
        )
    return tensor.float() * scale.float().reshape(-1, *(1,) * (tensor.ndim - 1))


def _scale_of(name: str, read: Weights) -> torch.Tensor | None:
    place = name.removesuffix("weight")
    return next((read[place + kind] for kind in SCALED if place + kind in read), None)


def _refuse_lacking_scales(weights: Weights, read: Weights, scales: tuple[str, ...]) -> None:
    """If there are scales, each float8 weight has one; without it the weight would be off by a factor."""
    lacking = [
        name
        for name in weights
        if read[name].dtype in FLOAT8 and name.endswith("weight") and _scale_of(name, read) is None
    ]
    if scales and lacking:
        raise UnreadableTensor(f"of the scaled float8 weights {len(lacking)} have no scale ({lacking[0]})")


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
