"""The notebooks, run cell by cell against a live server."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, live: Any, tmp_path: Path) -> None:
    """Every cell runs as it stands, but for the URL, and a picture or video is shown; none is stored with outputs."""
    book = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells)
    for cell in book.cells:
        cell.source = cell.source.replace("http://127.0.0.1:8000", live.url)
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = {kind for cell in book.cells for output in cell.get("outputs", ()) for kind in output.get("data", ())}
    assert shown & {"image/png", "image/jpeg", "text/html"}


def test_there_is_one_for_each_use() -> None:
    """Decoding pictures, decoding video, queueing."""
    assert [path.stem for path in NOTEBOOKS] == ["image", "queue", "video"]
