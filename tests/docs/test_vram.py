"""The tables of VRAM against the planner that calculates them."""

from pathlib import Path
from typing import Any

import pytest

from scripts import load_script

ROOT = Path(__file__).parents[2]
QUICK = ("sd1", "sdxl", "flux1", "flux2", "hunyuan-image-2.1")  # predicted without a rehearsal
HINT = "run: python docs/figures/vram.py"


@pytest.fixture(scope="module")
def written() -> Any:
    return load_script(ROOT / "docs" / "figures" / "vram.py")


def cells(page: str, head: str) -> list[list[str]]:
    lines = (ROOT / page).read_text().partition(head)[2].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_row_is_there(written: Any) -> None:
    """The page has the rows of the script, the README its short ones, and both say that nothing was measured."""
    whole, short = cells("docs/vram.md", written.HEAD), cells("README.md", written.HEAD)
    assert [row[0].split(",")[0].strip("`") for row in whole] == [row.model for row in written.ROWS], HINT
    assert short == [row for row, made in zip(whole, written.ROWS, strict=True) if made.short], HINT
    for page in ("docs/vram.md", "README.md"):
        assert "not measured" in (ROOT / page).read_text().partition(written.HEAD)[0][-800:]


@pytest.mark.parametrize("model", QUICK)
def test_figures_are_the_planners(written: Any, model: str) -> None:
    """Weights and exact plans are what the planner says today; in one row so are diffusers' own code and its tiles."""
    vae = written.build(model)
    for row, found in zip(written.ROWS, cells("docs/vram.md", written.HEAD), strict=True):
        if row.model == model:
            assert row != written.ROWS[0] or found == list(written.cells(row, vae)), HINT
            assert (found[2], found[5]) == (f"{vae.info.weight_bytes / written.GIB:.2f}", written.exact(row, vae)), HINT
