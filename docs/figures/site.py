"""What the site has beside the pages: results of benchmarks, files of the repository's root, names for other files."""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PLACE = "<!-- results -->"


ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md", "CONTRIBUTING.md": "contributing.md"}
AFTER = ("decisions/", "benchmarks", "changelog")  # pages that a search shows after the guides
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """MkDocs' hook: three files of the repository's root are pages too."""
    for name, page in ROOT_PAGES.items():
        if (ROOT / name).is_file():
            files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """MkDocs' hook: fills the benchmarks' page; a link to a file that is no page becomes the file's name."""
    uri: str = page.file.src_uri
    if uri.startswith(AFTER):
        page.meta["search"] = {"boost": 0.2}
    place = ROOT if uri in ROOT_PAGES.values() else (ROOT / "docs" / uri).parent
    markdown = LINK.sub(lambda link: _link(link, place, "../" * uri.count("/")), markdown)
    return markdown.replace(PLACE, render(ROOT / "benchmarks")) if PLACE in markdown else markdown


def _link(link: re.Match[str], place: Path, to_root: str) -> str:
    """The link as the site needs it. One that leads nowhere stays, and fails the build."""
    target = (place / link[2]).resolve()
    if not target.exists():
        return link[0]
    inside = ROOT_PAGES.get(target.name) if target.parent == ROOT else None
    if inside is None and (ROOT / "docs") in target.parents:
        inside = str(target.relative_to(ROOT / "docs"))
    if inside is None:
        return f"{link[1]} (`{target.relative_to(ROOT)}`)"
    return f"[{link[1]}]({to_root}{inside}{link[3] or ''})"


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
