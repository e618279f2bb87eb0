"""The families that are served. A module of this package that defines FAMILIES is found by itself.

Nothing outside this package names a class of diffusers.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Final

from remote_vae.core.recipe import Recipe
from remote_vae.errors import ConfigurationError, ModelLoadError
from remote_vae.models.family import Family, Model, misfit, stated_constants

FAMILIES: Final[tuple[Family, ...]] = tuple(
    family
    for module in sorted(found.name for found in pkgutil.iter_modules(__path__))
    for family in importlib.import_module(f"{__name__}.{module}").FAMILIES
)
MODELS: Final = {model.name: model for family in FAMILIES for model in family.models}
ALIASES: Final = {alias: model.name for model in MODELS.values() for alias in model.aliases}


def find_model(name: str) -> Model | None:
    """The model of a name or alias, in any case."""
    key = name.lower()
    return MODELS.get(ALIASES.get(key, key))


def find_recipe(name: str) -> Recipe:
    """The recipe of a model's name or alias; *raises* ConfigurationError naming the recipes that exist."""
    model = find_model(name)
    if model is None:
        raise ConfigurationError(f"recipe {name!r} is not known; known are {', '.join(MODELS)}", recipe=name)
    return model.recipe


def family_of(model: Model) -> Family:
    return next(family for family in FAMILIES if any(one.name == model.name for one in family.models))


def recipes_for(config: Mapping[str, object]) -> tuple[str, ...]:
    """Names of the recipes for weights with this config, those first that use every constant of it."""
    found: dict[str, Recipe] = {}
    for family in FAMILIES:
        for model in family.models:
            fits = family.cls == config.get("_class_name", family.cls) and not misfit(family, model.recipe, config)
            if fits and model.recipe not in found.values():
                found[model.name] = model.recipe
    stated = stated_constants(config)
    using_all = tuple(name for name, recipe in found.items() if not set(stated) & set(recipe.ignores))
    return using_all or tuple(found)


def refuse_other_weights(config: Mapping[str, object], name: str, place: str) -> None:
    """*Raises* ModelLoadError if weights with this config would give wrong pixels under the recipe of this name."""
    model = find_model(name)
    if model is None:
        return
    family = family_of(model)
    cls, known = str(config.get("_class_name", family.cls)), dict.fromkeys(one.cls for one in FAMILIES)
    if cls not in known:
        raise ModelLoadError(f"{place!r} holds a {cls}; supported are {', '.join(known)}", cls=cls)
    why = f"it is for {family.cls}" if cls != family.cls else misfit(family, model.recipe, config)
    if why:
        fitting = ", ".join(recipes_for({**config, "_class_name": cls})) or "none"
        raise ModelLoadError(
            f"the weights in {place!r} are of {cls}, for which recipe {name!r} would give a wrong picture: {why}; "
            f"recipes for these weights: {fitting}",
            cls=cls,
            recipe=name,
        )
