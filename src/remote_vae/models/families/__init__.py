"""The families that are served. A module of this package that defines FAMILIES is found by itself.

Nothing outside this package names a class of diffusers.
"""

import difflib
import importlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Final

from remote_vae.core.recipe import Recipe
from remote_vae.errors import ConfigurationError, ModelLoadError
from remote_vae.models.families.not_served import why_not, why_not_these
from remote_vae.models.family import Family, Model, misfit, stated_constants

FAMILIES: Final[tuple[Family, ...]] = tuple(
    family
    for module in sorted(found.name for found in pkgutil.iter_modules(__path__))
    for family in importlib.import_module(f"{__name__}.{module}").FAMILIES
)
MODELS: Final = {model.name: model for family in FAMILIES for model in family.models}
ALIASES: Final = {alias: model.name for model in MODELS.values() for alias in model.aliases}
_PUNCTUATION: Final = re.compile(r"[^a-z0-9]")
_DECORATION: Final = re.compile(r"(vae|diffusers|bf16|fp16|safetensors)+$")
MOST_PROPOSED: Final = 3


def find_model(name: str) -> Model | None:
    """The model of a name or alias, in any case."""
    key = name.lower()
    return MODELS.get(ALIASES.get(key, key))


def find_recipe(name: str) -> Recipe:
    """The recipe of a model's name or alias; *raises* ConfigurationError naming the recipes that exist."""
    model = find_model(name)
    if model is None:
        raise ConfigurationError(f"recipe {name!r} is not known{advice(name)}", recipe=name)
    return model.recipe


def advice(name: str) -> str:
    """For the text of an error about a name: why it is not served, which names are near, or all of them."""
    known = why_not(name)
    if known is not None:
        return f": {known}"
    spelled: dict[str, str] = {}
    for model in MODELS.values():
        for spelling in (model.name, *model.aliases, (model.repository or "").rpartition("/")[2]):
            spelled.setdefault(_bare(spelling), model.name)
    wanted = _bare(name.rpartition("/")[2])
    near = [wanted] if wanted in spelled else difflib.get_close_matches(wanted, spelled, MOST_PROPOSED)
    if near:
        return f"; did you mean {' or '.join(dict.fromkeys(spelled[one] for one in near))}?"
    return f"; known are {', '.join(MODELS)}"


def _bare(name: str) -> str:
    """A name without what people add to names or write in several ways."""
    return _DECORATION.sub("", _PUNCTUATION.sub("", name.lower()))


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


def refuse_unserved(config: Mapping[str, object], place: str) -> None:
    """*Raises* ModelLoadError if it is known why weights with this config are not served."""
    unserved = why_not_these(config, [family.cls for family in FAMILIES])
    if unserved is not None:
        cls = config.get("_class_name")
        raise ModelLoadError(f"{place!r} holds a {cls}: {unserved}", cls=cls)


def refuse_other_weights(config: Mapping[str, object], name: str, place: str) -> None:
    """*Raises* ModelLoadError if weights with this config would give wrong pixels under the recipe of this name."""
    model = find_model(name)
    if model is None:
        return
    family = family_of(model)
    cls, known = str(config.get("_class_name", family.cls)), dict.fromkeys(one.cls for one in FAMILIES)
    refuse_unserved(config, place)
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
