"""The documentation as a site."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(r"""<(?:script|img|iframe|source)[^>]+src=["']?([^"'> ]+)|<link[^>]+href=["']?([^"'> ]+)""")


def build(root: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    said = build(ROOT, target)
    assert said.returncode == 0, said.stdout + said.stderr
    return target


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """Scripts, styles, fonts and pictures of the site are its own."""
    for page in site.rglob("*.html"):
        for found in FETCHED.findall(page.read_text()):
            assert not re.match(r"(https?:)?//", "".join(found)), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//|@import", style.read_text())


def test_every_result_is_shown(site: Path) -> None:
    """The page of benchmarks has every file of results, with its figures, and the log."""
    text = (site / "benchmarks" / "index.html").read_text()
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert f'id="{path.stem}"' in text
    memory = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())
    assert all(f"{row['peak_bytes']:,}" in text for row in memory)
    assert (ROOT / "benchmarks" / "LOG.md").read_text().splitlines()[4].removeprefix("## ").split()[0] in text


def test_the_reference_is_the_codes(site: Path) -> None:
    """Everything public is in the reference, with its docstring."""
    import remote_vae

    text = (site / "reference" / "index.html").read_text()
    assert [
        name for name in remote_vae.__all__ if f'id="remote_vae.{name}"' not in text and name != "__version__"
    ] == []
    assert "Decodes latents and encodes images on a server" in text


@pytest.mark.parametrize("broken", ["[away](nowhere.md)", "[away](wire.md#nothing)", "![](images/nothing.png)"])
def test_a_broken_link_fails_the_build(tmp_path: Path, broken: str) -> None:
    """A link to no page, to no heading, or to no picture: the site is not built."""
    (tmp_path / "docs" / "figures").mkdir(parents=True)
    settings = (ROOT / "mkdocs.yml").read_text()
    settings = re.sub(r"^(nav:.*|  - mkdocstrings:.*?)(?=^\S|\Z)", "", settings, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "mkdocs.yml").write_text(settings)
    shutil.copy(ROOT / "docs" / "figures" / "site.py", tmp_path / "docs" / "figures")
    (tmp_path / "docs" / "wire.md").write_text("# The wire\n")
    shutil.copytree(ROOT / "docs" / "images", tmp_path / "docs" / "images")
    for text, code in ((f"# Home\n\n{broken}\n", 1), ("# Home\n\n[there](wire.md#the-wire)\n", 0)):
        (tmp_path / "docs" / "index.md").write_text(text)
        assert build(tmp_path, tmp_path / "site").returncode == code
