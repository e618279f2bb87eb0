"""Docstrings and pages are in plain English."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Signs of a sentence that must be read twice.
SIGNS = re.compile(
    r"\b(who|whoever|whose|whom|shall|lest|anew|for ever|else|as many|what it was|of its own|of their own|unasked"
    r"|thereof|whereby)\b",
    re.IGNORECASE,
)
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)  # a quoted `else` is no prose
WORD = re.compile(r"[A-Za-z][A-Za-z']*")
MOST_SIGNS = 2  # in 1,000 words


def docstrings(text: str) -> Iterator[str]:
    """The docstrings of a source text: its own, and those of its classes and functions."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def signs_in_1000_words(texts: list[str]) -> tuple[float, Counter[str]]:
    """The number of signs in each 1,000 words, and how often each sign was found."""
    prose = [CODE.sub(" ", " ".join(text.split())) for text in texts]
    found = Counter(match.lower() for text in prose for match in SIGNS.findall(text))
    words = sum(len(WORD.findall(text)) for text in prose)
    return 1000 * found.total() / max(1, words), found


def test_docstrings_of_the_sources() -> None:
    """At most 2 signs of an archaic or elliptic sentence in 1,000 words."""
    rate, found = signs_in_1000_words([text for path in SOURCES for text in docstrings(path.read_text())])
    assert rate <= MOST_SIGNS, f"{rate:.1f} in 1,000 words: {dict(found)}"


def test_pages_of_the_documentation() -> None:
    """The same for the README and the pages of the documentation, all together."""
    rate, found = signs_in_1000_words([path.read_text() for path in PAGES])
    assert rate <= MOST_SIGNS, f"{rate:.1f} in 1,000 words: {dict(found)}"


def test_how_signs_are_counted() -> None:
    """Whole words and phrases count, also across a line's end; code does not."""
    rate, found = signs_in_1000_words(["Else it waits as\n    many seconds, `else` or elsewhere.", "One who waits."])
    assert found == {"else": 1, "as many": 1, "who": 1}
    assert rate == 1000 * 3 / 11
