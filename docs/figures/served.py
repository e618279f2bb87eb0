"""The README's table of what is served, with predicted memory: `python docs/figures/served.py`.

Each architecture is built without weights and asked what a decode would take, so it needs minutes and little memory.
The pipelines that a model is tested against are those of the tests.
"""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from remote_vae.core.decode import decode
from remote_vae.core.executor import WHOLE, RunOptions
from remote_vae.core.layout import example_shape, fit_latent
from remote_vae.errors import TooLarge
from remote_vae.models.families import MODELS, family_of, find_model
from remote_vae.models.family import FACTORS, Model
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Counts, Output, Scaling

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "README.md"
COLUMNS: Final = (
    *("models", "decode", "encode", "weights", "`whole`", "least, and its plan", "previews", "tested against"),
)
NO_LAYERS: Final = (*FACTORS, "sample_size", "force_upcast")  # of a config
MOST_NAMED: Final = 5
GIB: Final = 2**30


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of what a latent decodes to: the side of a picture; the side and the frames of a clip."""

    side: int = 1024
    video_side: int = 640
    frames: int = 81


SIZES: Final = Sizes()


class _Predicted(Exception):
    """What a decode would take, in the place of the decode."""


@dataclass(frozen=True, slots=True)
class Group:
    """Models of the same layers."""

    models: tuple[Model, ...]

    def build(self) -> DiffusersVAE:
        """In float32 on the CPU; its weights are never written, and so take no memory."""
        model = self.models[0]
        family = family_of(model)
        with torch.device("meta"):
            module = family.load_class()(**(model.config or {}))
        family.prepare(module)
        return DiffusersVAE(module.to_empty(device="cpu").eval(), source="", revision="", family=family)


def groups() -> list[Group]:
    found: dict[str, list[Model]] = {}
    for model in MODELS.values():
        if not model.embedded:
            layers = {name: value for name, value in (model.config or {}).items() if name not in NO_LAYERS}
            key = repr((family_of(model).cls, sorted(layers.items()), model.recipe.ratio))
            found.setdefault(key, []).append(model)
    return [Group(tuple(models)) for models in found.values()]


def row(group: Group, pipelines: dict[str, set[str]]) -> str:
    model, vae = group.models[0], group.build()
    shape, output = latent_of(vae, model)
    cells = (
        ", ".join(f"`{model.name}`" for model in group.models),
        output,
        "latent" if vae.info.deterministic else ", ".join(sorted({model.recipe.posterior for model in group.models})),
        f"{vae.info.weight_bytes / GIB:.2f}",
        *memory(vae, model, shape),
        ", ".join(f"`{name}`" for name in dict.fromkeys(model.preview for model in group.models) if name),
        several(sorted({name for model in group.models for name in pipelines.get(model.name, ())})),
    )
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def latent_of(vae: DiffusersVAE, model: Model, sizes: Sizes = SIZES) -> tuple[tuple[int, ...], str]:
    """The shape of a latent of these sizes, or of the nearest that the model takes, and what it decodes to."""
    info, frames = vae.info, vae.info.frames
    if not model.recipe.has_frames:
        shape = example_shape(model.recipe, info, sizes.side // info.spatial_compression_ratio)
    else:
        possible = (f for f in range(1, sizes.frames + 1) if frames.latents.nearest(f) == (f,))
        latents = next(f for f in possible if frames.of_latent(f) >= sizes.frames)
        longer = replace(info, frames=replace(frames, latents=Counts(least=latents)))
        shape = example_shape(model.recipe, longer, sizes.video_side // info.spatial_compression_ratio)
    fit = fit_latent(model.recipe, info, shape, model=model.name, height=None, width=None)
    video = f" x {fit.frames}" if model.recipe.has_frames else ""
    return shape, f"{fit.width} x {fit.height}{video}"


def memory(vae: DiffusersVAE, model: Model, shape: tuple[int, ...]) -> tuple[str, str]:
    """GiB beside the weights: of a decode as a whole, and of the plan that needs least if there is another one."""
    _, whole = predicted(vae, model, shape, sys.maxsize, WHOLE)
    if whole is None:  # the model's own code cannot run without values
        return "?", ""
    plan, least = predicted(vae, model, shape, 0)
    assert least is not None
    return f"{whole / GIB:.2f}", "" if plan == WHOLE or least >= whole else f"{least / GIB:.2f} `{plan}`"


def predicted(
    vae: DiffusersVAE, model: Model, shape: tuple[int, ...], budget: int, plan: str | None = None
) -> tuple[str | None, int | None]:
    """The plan and its bytes, with so many bytes free; if no plan fits, those of the one that needs least."""

    def reserve(peak: int | None) -> bool:
        raise _Predicted(peak)

    fit = fit_latent(model.recipe, vae.info, shape, model=model.name, height=None, width=None)
    options = RunOptions(plan=plan, budget=lambda: budget, reserve=reserve)
    try:
        decode(vae, model.recipe, torch.zeros(shape), fit=fit, scaling=Scaling(), output=Output.UINT8, options=options)
    except _Predicted as found:
        peak: int | None = found.args[0]
    except TooLarge as exc:
        return str(exc.detail["plan"]), int(str(exc.detail["peak_bytes"]))
    return plan, peak


def several(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names) if more < 2 else f"{', '.join(names[:MOST_NAMED])} and {more} more"


def tested() -> dict[str, set[str]]:
    """The classes of the pipelines in the tests, by the names of models."""
    sys.path.insert(0, str(ROOT / "tests"))
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests" / "numerics").glob("test_*.py")):
        module = importlib.import_module(f"numerics.{path.stem}")
        recipes = {**importlib.import_module("numerics.conftest").RECIPES, **vars(module).get("RECIPES", {})}
        for case in cases_of(vars(module)):
            model = find_model(recipes.get(case.family, ""))
            if model is not None:
                found.setdefault(model.name, set()).add(case.cls.__name__.removesuffix("Pipeline"))
    return found


def cases_of(names: dict[str, Any]) -> Iterator[Any]:
    for value in list(names.values()):
        for case in value.values() if isinstance(value, dict) else [value]:
            if hasattr(case, "networks") and not isinstance(case, type):
                yield case


def table() -> list[str]:
    torch.set_num_threads(1)  # more threads run more strips at a time
    pipelines = tested()
    rows = [row(group, pipelines) for group in groups()]
    return [f"| {' | '.join(COLUMNS)} |", "|---|---|---|--:|--:|--:|---|---|", *rows]


def page() -> str:
    """The README with this table in the place of its own."""
    before, _, rest = PAGE.read_text().partition("| models |")
    return before + "\n".join(table()) + rest[rest.index("\n\n") :]


if __name__ == "__main__":
    PAGE.write_text(page())
