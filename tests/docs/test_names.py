"""Nothing installs the project by its bare name: no index holds the name, so a stranger could put anything under it."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import InvalidRequirement, Requirement

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("src", "docs", "deploy", "examples", "integrations", "benchmarks", "training", "tests")
KINDS = {
    ".py",
    ".md",
    ".txt",
    ".toml",
    ".yaml",
    ".yml",
    ".ipynb",
    ".html",
    ".js",
    ".tpl",
    ".service",
    ".json",
    ".cfg",
    "",
}
INSTALLS = re.compile(
    r"\b(?:pip3?|pipx|uvx?|poetry|pdm|conda|mamba|comfy)\b[^\n`]*?\b(?:install|add|run|sync|tool)\b([^\n]*)"
)
UVX = re.compile(r"\b(?:uvx|pipx run)\b([^\n]*)")
BARE = re.compile(r"(?<![\w./-])remote[-_.]+vae(?![\w/-]|\.\w|\[[^]]*\]\s*@|\s*@)", re.IGNORECASE)


def files() -> list[Path]:
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += [
            path
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and not {"results", "remote_vae.egg-info"} & {*path.parts}
        ]
    return [path for path in found if path.suffix in KINDS and path != Path(__file__) and path.name != "CHANGELOG.md"]


def faults(text: str) -> list[str]:
    """What installs by the bare name, of commands and of messages that say a command."""
    commands = [found for pattern in (INSTALLS, UVX) for found in pattern.findall(text)]
    return [command for command in commands if BARE.search(command)]


def test_no_command_installs_a_bare_name() -> None:
    """Every command, be it in a page, a message, a notebook or a script, names a folder or a source."""
    assert len(files()) > 300
    assert {str(path.relative_to(ROOT)): found for path in files() if (found := faults(path.read_text("utf-8")))} == {}


@pytest.mark.parametrize(
    "path", [path for path in files() if re.search("require|lock|environment", str(path))], ids=str
)
def test_no_requirement_is_a_bare_name(path: Path) -> None:
    """A file of requirements names the source of the project."""
    for line in path.read_text().splitlines():
        try:
            found = Requirement(line.partition(" \\")[0].partition(" #")[0])
        except InvalidRequirement:
            continue
        assert found.url or found.name.lower().replace("_", "-") != "remote-vae", line


def test_extras_name_the_project_itself() -> None:
    """The one place that names the project bare is its own extras, which pip takes from where it takes the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [item for items in project["optional-dependencies"].values() for item in items if BARE.search(item)]
    assert all(set(item[11:-1].split(",")) <= set(project["optional-dependencies"]) for item in named)
    assert not [item for item in project["dependencies"] if BARE.search(item)]


BAD = (
    "pip install remote-vae",
    "pip install 'remote-vae[server]'",
    "uv add remote_vae==1",
    "pip install -U remote-vae>=1",
)
GOOD = (
    "pip install '.[server]'",
    "pip install 'remote-vae @ git+https://a.example/b'",
    "/opt/remote-vae/bin/pip install .",
)


def test_what_is_found() -> None:
    assert [text for text in BAD if not faults(text)] == []
    assert [text for text in GOOD if faults(text)] == []
    assert faults("uvx remote-vae serve")
