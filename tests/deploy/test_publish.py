"""What is published: a source distribution and a wheel that are whole, with links that lead somewhere from an index."""

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from scripts import load_script

ROOT = Path(__file__).parents[2]
ADDRESS = "https://example.org/somebody/remote-vae"


@pytest.fixture(scope="module")
def publish() -> ModuleType:
    return load_script(ROOT / "deploy" / "publish.py")


@pytest.fixture(scope="module")
def dist(publish: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as for an index, but by the setuptools that is installed here."""
    folder = tmp_path_factory.mktemp("dist")
    assert publish.build(ADDRESS, folder, "--no-isolation") == 0
    return folder


def test_the_source_distribution_is_whole(publish: ModuleType, dist: Path) -> None:
    """Every tracked file is in it: the tests, the documentation, the changelog and what they need."""
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert set(publish.tracked()) - held == set()


def test_the_wheel_is_whole_and_runs(publish: ModuleType, dist: Path, tmp_path: Path) -> None:
    """It has every file of the package and no other, and is imported from where it was installed."""
    wheel = next(dist.glob("*.whl"))
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {name.removeprefix("src/") for name in publish.tracked() if name.startswith("src/")}
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        tmp_path,
        wheel,
    ]
    subprocess.run(install, check=True, timeout=120)
    program = "import remote_vae, sys; sys.exit(remote_vae.__file__ + remote_vae.__version__)"
    said = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert said.stderr.strip() == f"{tmp_path}/remote_vae/__init__.py{wheel.name.split('-')[1]}"


def test_what_an_index_shows(dist: Path) -> None:
    """The project's URLs have the repository's address, and no link of the README is relative."""
    wheel = zipfile.ZipFile(next(dist.glob("*.whl")))
    text = wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))).decode()
    assert "repository.invalid" not in text
    shown = email.message_from_string(text)
    assert {url.partition(", ")[0] for url in shown.get_all("Project-URL", [])} >= {"Repository", "Changelog"}
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", shown.get_payload(), flags=re.DOTALL))
    assert len(links) > 5
    assert [link for link in links if not link.startswith(("https://", "http://", "#"))] == []


def test_links(publish: ModuleType) -> None:
    """Files become links to their text, pictures to themselves; addresses, anchors and code stay."""
    kept = "[a](https://a.example) [b](#there) `x[0](y)`"
    text = f'{kept} [c](docs/wire.md#top) ![d](docs/images/demo.jpg) <img src="docs/images/logo.svg"> [e](examples)'
    blob, raw = f"{ADDRESS}/blob/v1", f"{ADDRESS}/raw/v1"
    assert publish.absolute(text, ADDRESS, "v1") == (
        f"{kept} [c]({blob}/docs/wire.md#top) ![d]({raw}/docs/images/demo.jpg) "
        f'<img src="{raw}/docs/images/logo.svg"> [e]({blob}/examples)'
    )
