"""The locks, and the verdict on a report of known vulnerabilities."""

import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts import load_script

ROOT = Path(__file__).parent.parent.parent
LOCKS = sorted((ROOT / "deploy" / "requirements").glob("*.txt"))


@pytest.fixture(scope="module")
def supply() -> ModuleType:
    return load_script(ROOT / "deploy" / "supply.py")


@pytest.mark.parametrize("path", LOCKS, ids=[path.stem for path in LOCKS])
def test_every_package_is_pinned_and_hashed(supply: ModuleType, path: Path) -> None:
    """A lock has nothing but exact versions, each with the hash of at least one file."""
    entries = [entry for entry in re.split(r"\n(?=\S)", path.read_text()) if not entry.startswith("#")]
    for entry in entries:
        assert re.fullmatch(r"\S+==\S+( ; [^\\]+)? \\(\n    --hash=sha256:[0-9a-f]{64}( \\)?)+\n?", entry), entry
    assert len(supply.pins(path.read_text())) == len(entries)


@pytest.mark.parametrize("path", LOCKS, ids=[path.stem for path in LOCKS])
def test_versions_are_those_that_were_tested(supply: ModuleType, path: Path) -> None:
    """What a lock and the tests' constraints both name has one version."""
    tested = supply.pins((ROOT / "constraints.txt").read_text())
    for name, version in supply.pins(path.read_text()).items():
        assert version.removesuffix("+cpu") == tested.get(name, version.removesuffix("+cpu")), name


@pytest.mark.parametrize(
    ("lock", "extra"), [("client", None), ("server", "server"), ("ray", "ray"), ("supply", "supply")]
)
def test_locks_know_every_requirement(supply: ModuleType, lock: str, extra: str | None) -> None:
    """Every direct requirement of the project and of the extra is in its lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else ())]
    names = {re.match(r"[A-Za-z0-9._-]+", item)[0].lower().replace("_", "-") for item in wanted}  # type: ignore[index]
    locked = supply.pins((ROOT / "deploy" / "requirements" / f"{lock}.txt").read_text())
    assert names - {"remote-vae"} <= set(locked)


def test_processors_alone_need_nothing_of_a_gpu(supply: ModuleType) -> None:
    """The locks for processors have no package of NVIDIA's, and otherwise name what the others do."""
    for name in ("server", "ray"):
        gpu, cpu = (
            supply.pins((ROOT / "deploy" / "requirements" / f"{name}{kind}.txt").read_text()) for kind in ("", "-cpu")
        )
        assert not [package for package in cpu if package.startswith(("nvidia", "cuda", "triton"))]
        assert {package: cpu[package] for package in cpu if package != "torch"}.items() <= gpu.items()


CLEAN = {"name": "Some_Package", "version": "1.0", "vulns": []}


@pytest.mark.parametrize(
    ("row", "faults"),
    [
        (CLEAN, []),
        ({**CLEAN, "skip_reason": "not found"}, ["some-package 1.0 was not looked up: not found"]),
        ({**CLEAN, "name": "another"}, ["some-package 1.0 was not looked up: not in the report"]),
        (
            {**CLEAN, "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]},
            ["some-package 1.0 has CVE-1; fixed in: 1.1"],
        ),
    ],
)
def test_the_verdict(supply: ModuleType, row: dict[str, object], faults: list[str]) -> None:
    """A package that could not be looked up speaks against a release as a vulnerability does."""
    assert list(supply.judged({"dependencies": [row]}, {"some-package": "1.0"})) == faults


def test_a_report_of_nothing_is_no_clean_report(supply: ModuleType) -> None:
    """An empty report says nothing about any package."""
    assert len(list(supply.judged({}, {"a": "1", "b": "2"}))) == 2


def test_a_database_out_of_reach_is_one_fault(supply: ModuleType) -> None:
    """If no package was looked up, one sentence says so; if one was, each of the others is named."""
    locked = {"a": "1", "b": "2", "c": "3"}
    rows = [{"name": name, "skip_reason": "no answer"} for name in locked]
    [fault] = supply.shortened(list(supply.judged({"dependencies": rows}, locked)), locked)
    assert fault.startswith("none of 3 packages was looked up")
    assert fault.endswith("a 1 was not looked up: no answer")
    rows[0] = {"name": "a", "vulns": []}
    assert len(supply.shortened(list(supply.judged({"dependencies": rows}, locked)), locked)) == 2


def test_an_audit_without_its_program(supply: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Without pip-audit the audit fails and says how to get it."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.argv", ["supply.py", "audit", str(LOCKS[0])])
    assert supply.main() == 1
    assert "`make audit` installs it" in capsys.readouterr().out
