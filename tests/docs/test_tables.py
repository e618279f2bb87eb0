"""The documentation's tables against the code."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import requests
import typer.main

from remote_vae.cli.main import app
from remote_vae.errors import all_errors
from remote_vae.models.families import MODELS
from remote_vae.protocol import options
from remote_vae.protocol.messages import Provenance, Reply
from remote_vae.protocol.replies import render_reply
from remote_vae.server.settings import Settings
from remote_vae.values import FORMATS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROW = re.compile(r"^\|(.+)\|$", re.MULTILINE)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
PROGRAMS = r"\S*pip|docker|helm|kubectl|ray|systemctl|curl|twine|\S*mkdocs|python \S+\.py"
OTHERS = re.compile(rf"^\s*(?:[A-Z_]+=\S+ )*(?:{PROGRAMS})\s|`[^`]*(?:docker |wsl |python \S+\.py )[^`]*`")


def rows(page: str, *, first: str) -> list[list[str]]:
    """The cells of the table whose head begins with `first`, back-ticks taken off."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return found


def test_every_error_has_a_row() -> None:
    """docs/errors.md has code, class, status and meaning of every class, and no class that there is not."""
    sent, raised = rows("errors.md", first="`error_type`"), rows("errors.md", first="`code`")
    documented = {(code, name, int(status)) for code, name, status, _ in sent}
    documented |= {(code, name, 0) for code, name, _ in raised}
    assert documented == {(cls.code, cls.__name__, cls.status) for cls in all_errors()}
    assert all(row[-1] for row in sent + raised)


def test_every_parameter_has_a_row() -> None:
    """docs/wire.md has every parameter, under the operation that takes it, and no other."""
    documented: dict[str, set[str]] = {"decode": set(), "encode": set()}
    for names, operation, meaning in rows("wire.md", first="name"):
        assert meaning
        for name in names.split(", "):
            for one in documented if operation == "both" else [operation]:
                documented[one].add(name)
    assert documented == {"decode": set(options.DECODE), "encode": set(options.ENCODE)}


def test_every_header_has_a_row() -> None:
    """docs/wire.md has the headers that tell how a reply came about."""
    full = Provenance("r", "m", "v", "whole", "float32", "note", {"decode": 1.0})
    _, headers, _ = render_reply(Reply(b"x", FORMATS["png"], full))
    documented = {name for cell, _ in rows("wire.md", first="header") for name in cell.split(", ")}
    assert documented == {name for name, _ in headers} - {"content-type"}


def test_every_route_has_a_row(live: Any) -> None:
    """The routes that docs/wire.md calls GET answer 200 to GET, 404 about a job that is not there, and the others 405.

    The table has every route of /docs.
    """
    both = {"/"}
    for cell, method, _ in rows("wire.md", first="route"):
        for route in cell.split(", "):
            status = requests.get(live.url + route.replace("<model>", "sd"), timeout=10).status_code
            found = 404 if "{id}" in route else 200
            assert status == (found if method == "GET" or route in both else 405), route
    described = requests.get(f"{live.url}/openapi.json", timeout=10).json()["paths"]
    routes = {path.replace("{model}", "<model>") for path in described}
    assert routes <= {route for cell, _, _ in rows("wire.md", first="route") for route in cell.split(", ")}


def test_every_reply_form_is_named() -> None:
    """docs/wire.md names every media type that a reply can have."""
    text = (ROOT / "docs" / "wire.md").read_text()
    assert [row.media_type for row in FORMATS.values() if f"`{row.media_type}`" not in text] == []


def test_every_model_has_a_row() -> None:
    """docs/models.md has the tables that its command writes: every name, alias, weights, factor and reason."""
    written = runpy.run_path(str(ROOT / "docs" / "figures" / "models.py"))
    page = (ROOT / "docs" / "models.md").read_text()
    assert written["page"]() == page, "run: python docs/figures/models.py"
    assert {row[0] for row in rows("models.md", first="name")} == set(MODELS)


def test_the_factors_of_the_documentation() -> None:
    """The factors of docs/models.md are those of the published configs."""
    table = {row[0]: tuple(row[3:6]) for row in rows("models.md", first="name")}
    assert table["sd1"] == ("4", "0.18215", "")
    assert table["flux1"] == table["taef1"] == ("16", "0.3611", "0.1159")
    assert table["flux2"] == ("32", "by channel", "")
    assert table["hunyuanvideo"] == ("16", "0.476986", "")


def test_what_it_saves() -> None:
    """The README's figures are those of the results that it names."""

    def of(file: str, field: str, each: float) -> list[str]:
        """Of diffusers in the row's precision, `strips` and `strips-recompute`."""
        found = json.loads((ROOT / "benchmarks" / "results" / file).read_text())
        found = found if isinstance(found, list) else found["rows"]
        names = {
            "memory.json": "diffusers",
            "decode-512-float32.json": "diffusers",
            "decode-512.json": "diffusers-bf16",
        }
        plans = {row["plan"] or row["variant"]: row[field] / each for row in reversed(found) if row[field]}
        return [f"{plans[name]:{'.0f' if each > 1 else '.1f'}}" for name in (names[file], "strips", "strips-recompute")]

    units = {"memory in MB": ("peak_bytes", 1e6), "seconds": ("seconds", 1.0)}
    kept = rows("../README.md", first="a decode")
    assert [row[4] for row in kept] == ["memory.json", "decode-512-float32.json", "decode-512.json"]
    for row in kept:
        assert row[1:4] == of(row[4], *units[row[0].split(",")[0]])


def test_every_protection_has_its_tests() -> None:
    """Each kind in SECURITY.md that names a protection's tests names files that are there, and settings that exist."""
    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`([\w/]+\.py)`", text)
    assert len(named) > 10
    assert [name for name in named if not any((place / name).is_file() for place in (ROOT, ROOT / "tests"))] == []
    settings = re.findall(r"`([a-z]+(?:_[a-z]+)+)`", text.partition("## What the worst")[2])
    assert set(settings) - {"poison_request"} <= set(Settings.model_fields)


def test_every_setting_has_a_row() -> None:
    """docs/operating.md has every setting with what it is without it, each has a flag, and keys have none; the other
    flags are Ray's, in docs/deploying.md, and a second name."""
    table = {name: (default, meaning) for name, default, meaning in rows("operating.md", first="setting")}
    assert set(table) == set(Settings.model_fields)
    for name, item in Settings.model_fields.items():
        default, meaning = table[name]
        assert meaning
        if type(item.default) in (int, float):
            assert float(default) == item.default, name
        elif isinstance(item.default, str):
            assert default == item.default
    as_flags = {name.replace("models", "model").replace("_", "-") for name in Settings.model_fields}
    of_ray = {flag.removeprefix("--") for flag, *_ in rows("deploying.md", first="flag")}
    assert {flag.removeprefix("--") for flag in flags()["serve"]} - {"help"} == as_flags - {"keys"} | of_ray | {
        "allow-origin"
    }


def flags() -> dict[str, set[str]]:
    """The flags of each command; a group's are those of its commands."""
    group: Any = typer.main.get_command(app)
    return {"": _flags_of(group)} | {
        name: _flags_of(group.get_command(None, name)) for name in group.list_commands(None)
    }


def _flags_of(command: Any) -> set[str]:
    own = {flag for item in command.params for flag in (*item.opts, *item.secondary_opts)} | {"--help"}
    return own.union(*map(_flags_of, getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_exists(page: Path) -> None:
    """Every flag that a page names is one of a command's; in a line with a command, one of that command's."""
    known = flags()
    anywhere = set().union(*known.values())
    for line in page.read_text().splitlines():
        if OTHERS.search(line):  # another program's
            continue
        called = re.search(r"\bremote-vae (\w+)", line)
        allowed = known[called.group(1)] if called and called.group(1) in known else anywhere
        assert set(FLAG.findall(line)) <= allowed, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Relative links and pictures are files of the repository, and every `make` target exists."""
    text = page.read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if not link.startswith(("http://", "https://", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), link
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE)) <= targets
