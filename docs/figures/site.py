"""What the site has that the pages have not: the results of benchmarks, and words for what lies outside of it."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PLACE = "<!-- results -->"


OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """MkDocs' hook: fills the benchmarks' page; a link to a file of the repository becomes the file's name."""
    if "/" not in page.file.src_uri:
        markdown = OUTSIDE.sub(lambda link: f"{link[1]} (`{link[2]}`)", markdown)
    return markdown.replace(PLACE, render(ROOT / "benchmarks")) if PLACE in markdown else markdown


def render(folder: Path) -> str:
    files = sorted((folder / "results").glob("*.json"))
    parts = [f"## {path.stem}\n\n{_section(json.loads(path.read_text()))}" for path in files]
    log = (folder / "LOG.md").read_text().replace("# Experiments", "", 1).replace("\n## ", "\n### ")
    return "\n\n".join([*parts, f"## Log\n{log}"])


def _section(found: Any) -> str:
    """Lists of records and records of records are tables; single values are a table of two columns."""
    if isinstance(found, list):
        return _table(found) if all(isinstance(row, dict) for row in found) else _text(found)
    single = {name: value for name, value in found.items() if not isinstance(value, dict | list)}
    parts = [_table([{"": name, "value": value} for name, value in single.items()])] if single else []
    for name, value in found.items():
        if name in single:
            continue
        records = isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values())
        body = _table([{"": key, **row} for key, row in value.items()]) if records else _section(value)
        parts.append(f"**{name}**\n\n{body}")
    return "\n\n".join(parts)


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = [f"| {' | '.join(_text(name) for name in names)} |", f"|{'---|' * len(names)}"]
    return "\n".join([*head, *(f"| {' | '.join(_text(row.get(name)) for name in names)} |" for row in rows)])


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return (json.dumps(value) if isinstance(value, list | dict) else str(value)).replace("|", "\\|")
