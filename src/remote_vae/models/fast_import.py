"""`open_model` for a replica's own process, which needs diffusers' VAEs and nothing else of it.

Importing diffusers also imports transformers and SciPy, if they are installed, and torch's compiler. That takes a good
part of a replica's memory, and of the time until a model is served or served again after its process has died. VAEs use
none of them, but for those that their family names.
"""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Final

from remote_vae.core.absent import COMPILER, in_place_of
from remote_vae.core.recipe import Recipe
from remote_vae.models.families import family_of
from remote_vae.models.family import Family
from remote_vae.models.spec import ModelSpec
from remote_vae.models.weights import find_weights

if TYPE_CHECKING:
    from remote_vae.models.vae import DiffusersVAE


UNUSED: Final[Mapping[str, ModuleType | None]] = {"transformers": None, "scipy": None, **COMPILER}


def open_model(found: dict[str, object]) -> "tuple[DiffusersVAE, Recipe]":
    """A VAE and its recipe, for a spec as JSON values: what a replica calls.

    Weights for which the recipe is wrong are refused before diffusers is imported. *Raises* ModelLoadError.
    """
    spec = ModelSpec.from_json(found)
    weights = find_weights(spec)
    opened: tuple[DiffusersVAE, Recipe] = _import_loader(family_of(spec.recipe_model)).open_model(spec, weights)
    return opened


def _import_loader(family: Family) -> ModuleType:
    """The loader and the family's class, without what its VAE does not need; with it if this diffusers does need it."""
    try:
        with in_place_of({name: module for name, module in UNUSED.items() if name not in family.uses}):
            loader = importlib.import_module("remote_vae.models.loader")
            family.load_class()
    except (ImportError, AttributeError, RuntimeError):
        loader = importlib.import_module("remote_vae.models.loader")
    return loader
