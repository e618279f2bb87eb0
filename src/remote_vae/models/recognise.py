"""Which models are made of the tensors that a file has, by their names and shapes."""

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from remote_vae.errors import ConfigurationError
from remote_vae.models.families import MODELS, family_of, recipes_for, refuse_unserved
from remote_vae.models.family import FACTORS
from remote_vae.models.files import Stored, is_local, place_of, read_config, read_headers, source_file


def recognise(name: str, source: str) -> str | None:
    """The one recipe for which these weights can be; None if they are not on this machine.

    *Raises* ConfigurationError if there are several or none, ModelLoadError if the weights cannot be read.
    """
    if not is_local(source):
        return None
    path = source_file(source)
    if path is None:
        config = read_config(place_of(Path(source).expanduser(), None))
        refuse_unserved(config, source)
        recipes = recipes_for(config)
    else:
        read_headers([path])  # what is no file of weights is refused at once
        # A process, because it imports torch and diffusers, which the server's own never does.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            recipes = pool.submit(recipes_for_file, path).result()
    if len(recipes) != 1:
        raise ConfigurationError(
            f"the weights of model {name!r} in {source!r} fit "
            + (f"several recipes; choose one with ,recipe=NAME: {', '.join(recipes)}" if recipes else "no known model"),
            model=name,
        )
    return recipes[0]


def recipes_for_file(path: Path) -> tuple[str, ...]:
    """Names of the recipes for a file, one for those that would give the same pixels."""
    return recipes_for_tensors(read_headers([path]))


def recipes_for_tensors(stored: Mapping[str, Stored]) -> tuple[str, ...]:
    """Names of the models that have these tensors, one of those that differ in nothing else."""
    import torch

    from remote_vae.models.tensors import fit_tensors

    fitting: dict[str, bool] = {}
    found: dict[object, str] = {}
    for model in MODELS.values():
        family = family_of(model)
        if model.config is None or model.embedded or family.lacks():
            continue
        architecture = repr((family.cls, model.config, family.convert))
        if architecture not in fitting:
            try:
                with torch.device("meta"):
                    module = family.load_class()(**model.config)
                fitting[architecture] = fit_tensors(stored, module, family.convert).whole
            except Exception:  # noqa: BLE001  # boundary: a class that cannot be built in this process is no candidate
                fitting[architecture] = False
        if fitting[architecture]:
            key = (model.recipe, repr([model.config.get(factor) for factor in FACTORS]), family.prepare)
            found.setdefault(repr(key), model.name)
    return tuple(found.values())
