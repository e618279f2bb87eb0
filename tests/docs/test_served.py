"""The README's table of what is served, against the families."""

from pathlib import Path

from remote_vae.core.executor import PIECES, RECOMPUTE
from remote_vae.models.families import MODELS

README = Path(__file__).parents[2] / "README.md"


def rows() -> list[list[str]]:
    """The cells of the table, back-ticks taken off."""
    _, _, rest = README.read_text().partition("| models |")
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def test_every_model_is_in_the_readme() -> None:
    """Every model but the one in the package is in one row, and each row says which exact plan needs least."""
    names = [name for row in rows() for name in row[0].split(", ")]
    served = [name for name, model in MODELS.items() if not model.embedded]
    assert sorted(names) == sorted(served), "run: python docs/figures/served.py"
    plans = {row[5].partition(" ")[2] for row in rows()}
    assert plans == {"", RECOMPUTE, PIECES, "frames", "rows"}
