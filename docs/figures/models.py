"""The tables of docs/models.md, from the families: `python docs/figures/models.py`."""

import inspect
from pathlib import Path
from typing import Final

from remote_vae.core.recipe import Affine, Constants
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.families.not_served import NOT_SERVED
from remote_vae.models.family import Model, channels_of

PAGE: Final = Path(__file__).parents[1] / "models.md"
COLUMNS: Final = (
    "name",
    "aliases",
    "weights on the Hub",
    "channels",
    "`scaling_factor`",
    "`shift_factor`",
    "precision on a GPU",
    "preview",
)


def served() -> list[str]:
    """The lines of the table of what is served."""
    return [f"| {' | '.join(COLUMNS)} |", "|---|---|---|--:|--:|--:|---|---|", *map(row, MODELS.values())]


def row(model: Model) -> str:
    overflows = model.honours_force_upcast and (model.config or {}).get("force_upcast")
    cells = (
        f"`{model.name}`",
        ", ".join(f"`{alias}`" for alias in model.aliases),
        weights(model),
        *facts(model),
        "float32" if overflows else model.dtype,
        f"`{model.preview}`" if model.preview else "",
    )
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def weights(model: Model) -> str:
    """Where the weights are published."""
    if model.file is not None:
        return f"[{model.file.rpartition('/')[2]}]({model.file})"
    return f"`{model.repository}`" if model.repository else "in the package"


def facts(model: Model) -> tuple[str, str, str]:
    """Channels, scaling and shift; "by channel" if the statistics of the weights take their place."""
    if model.embedded:
        return "16", "own", "own"
    if model.config is None:
        return "own", "by channel", ""
    defaults = inspect.signature(family_of(model).load_class().__init__).parameters.values()
    config = {item.name: item.default for item in defaults} | dict(model.config)
    affine = next((op for op in model.recipe.ops if isinstance(op, Affine)), Affine())
    constants = affine.literal or Constants(config.get("scaling_factor"), config.get("shift_factor"))
    scales = affine.literal is not None or "scaling_factor" in affine.uses
    by_channel = (not scales and affine.uses) or constants.latents_mean is not None
    scaling = "by channel" if by_channel else constants.scaling_factor if scales else None
    shift = constants.shift_factor if scales else None
    return str(channels_of(config)), *("" if value is None else str(value) for value in (scaling, shift))


def not_served() -> list[str]:
    """The lines of the table of what is not."""
    rows = [(one.what, ", ".join(f"`{name}`" for name in one.names), one.reason, one.instead) for one in NOT_SERVED]
    return [
        "| not served | names | why | what to do |",
        "|---|---|---|---|",
        *("| " + " | ".join(cells) + " |" for cells in rows),
    ]


def page() -> str:
    """The page with what the families say in the place of its tables."""
    text = PAGE.read_text()
    for lines in (served(), not_served()):
        head = lines[0][: lines[0].index("|", 1) + 1]
        before, _, rest = text.partition(head)
        text = before + "\n".join(lines) + rest[rest.index("\n\n") :]
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
