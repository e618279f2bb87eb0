"""Files and functions stay short enough to be read at once."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2] / "src" / "remote_vae"
SOURCES = sorted(ROOT.rglob("*.py"))
LONGEST_FILE, LONGEST_FUNCTION = 300, 50


def functions(text: str) -> Iterator[tuple[str, int]]:
    """The name of each function in a source text, and its lines, decorators not counted."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_file_is_longer_than_300_lines() -> None:
    """A module of src has at most 300 lines."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_function_is_longer_than_50_lines() -> None:
    """A function of src has at most 50 lines, its signature and docstring counted."""
    found = {
        f"{path.relative_to(ROOT)}: {name}": lines for path in SOURCES for name, lines in functions(path.read_text())
    }
    assert {name: lines for name, lines in found.items() if lines > LONGEST_FUNCTION} == {}


def test_how_lines_are_counted() -> None:
    """From the line of `def` to the last line of the body, for methods and inner functions too."""
    text = "class A:\n    @staticmethod\n    async def f():\n        def g():\n            pass\n\n        return g\n"
    assert sorted(functions(text)) == [("f", 5), ("g", 2)]
