"""What an operator says about a model to be served: `NAME[=SOURCE][,key=value...]`."""

import sys
from dataclasses import asdict, dataclass, fields
from typing import Any

from remote_vae.core.recipe import Recipe
from remote_vae.errors import ConfigurationError
from remote_vae.models.families import advice, family_of, find_model, find_recipe
from remote_vae.models.families.not_served import why_not
from remote_vae.models.family import Model
from remote_vae.models.recognise import recognise

DTYPES = ("float32", "float16", "bfloat16")
_OPTIONS = ("recipe", "dtype", "revision", "subfolder", "device", "sha256", "lazy", "pinned")
_YES_NO = {"yes": True, "no": False}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to be served, under the name that its route has.

    `source` is a hub id, a folder in diffusers' layout or a .safetensors file; None is the known model's own.
    `sha256` is the digest that the safetensors files must have, joined in the order of their names. If `dtype` is None,
    the family's policy chooses the precision. A `lazy` model is loaded at its first request; a `pinned` one is never
    unloaded. `memory_budget` is for weights and work together, in bytes, or as a float the share of the device's
    memory; None is what the device has free.
    """

    name: str
    source: str | None = None
    recipe: str | None = None
    dtype: str | None = None
    revision: str | None = None
    subfolder: str | None = None
    sha256: str | None = None
    device: str = "auto"
    random_weights: bool = False
    memory_budget: int | float | None = None
    lazy: bool = False
    pinned: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigurationError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}", dtype=self.dtype)
        if find_model(self.name) is None and self.source is None:
            own = "" if why_not(self.name) else f"; to serve weights under this name: {self.name}=SOURCE"
            raise ConfigurationError(
                f"model {self.name!r} is not in the registry{advice(self.name)}{own}", model=self.name
            )
        if find_model(self.name) is None and self.recipe is None:
            raise ConfigurationError(
                f"model {self.name!r} is not in the registry, so its recipe cannot be known; add ,recipe=NAME",
                model=self.name,
            )
        self.resolve_recipe()
        unfit = family_of(self.recipe_model).unfit_dtypes
        if self.dtype in unfit:
            allowed = " or ".join(dtype for dtype in DTYPES if dtype not in unfit)
            raise ConfigurationError(
                f"the weights of model {self.name!r} overflow in {self.dtype}; add ,dtype= with "
                f"{allowed} to its --model",
                dtype=self.dtype,
            )

    def resolve_recipe(self) -> Recipe:
        return find_recipe(self.recipe or self.name)

    @property
    def recipe_model(self) -> Model:
        """The model that gives the recipe, the precision policy and, for a single file, the architecture."""
        found = find_model(self.recipe or self.name)
        assert found is not None  # checked when the spec was made
        return found

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_json(found: dict[str, object]) -> "ModelSpec":
        return ModelSpec(**{f.name: found[f.name] for f in fields(ModelSpec)})  # type: ignore[arg-type]  # by to_json


def parse_spec(
    text: str,
    *,
    random_weights: bool = False,
    device: str = "auto",
    dtype: str | None = None,
    memory_budget: int | float | None = None,
    lazy: bool = False,
) -> ModelSpec:
    """The spec of a `--model` argument. If only one recipe can be for the weights, it need not be named.

    *Raises* ConfigurationError; ModelLoadError if the weights would have to tell the recipe and cannot be read.
    """
    head, *options = text.split(",")
    name, _, source = head.partition("=")
    given: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in _OPTIONS or not value:
            raise ConfigurationError(
                f"{option!r} in model {text!r} is not key=value with key one of {', '.join(_OPTIONS)}", model=text
            )
        if key in given:
            raise ConfigurationError(f"{key} is given twice in model {text!r}", model=text)
        if key in ("lazy", "pinned") and value not in _YES_NO:
            raise ConfigurationError(f"{key}={value!r} in model {text!r} is neither yes nor no", model=text)
        given[key] = _YES_NO[value] if key in ("lazy", "pinned") else value
    if source and "recipe" not in given and not random_weights and find_model(name) is None:
        given["recipe"] = recognise(name, source)
        if given["recipe"] is not None:
            tell(name, f"has the tensors of recipe {given['recipe']!r}, which is taken")
    for_all: dict[str, Any] = {"random_weights": random_weights, "memory_budget": memory_budget}
    return ModelSpec(name, source or None, **for_all, **{"device": device, "dtype": dtype, "lazy": lazy, **given})


def tell(name: str, text: str) -> None:
    """Says on standard error what somebody ought to know of a model that starts."""
    print(f"remote-vae: model {name!r} {text}", file=sys.stderr, flush=True)
