"""The supply chain: `supply.py lock | sbom | licences | audit`; needs the extra `supply`.

`lock` writes requirements/*.txt anew: every package of an extra, pinned to the tested version, with the hashes of all
its files. `sbom` and `licences` describe an installed environment. `audit` looks every pinned package up and fails for
a known vulnerability, and just as much for a package that it could not look up.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
LOCKS = HERE / "requirements"
# A lock -> what it locks. torch for a GPU comes from PyPI with NVIDIA's packages; torch for processors alone is on
# PyTorch's own index, under a version of its own.
LOCKED = {
    "build": ("--group", "build"),
    "client": (),
    "server": ("--extra", "server"),
    "ray": ("--extra", "ray"),
    "supply": ("--extra", "supply"),
}
ON_CPU = ("server", "ray")
CPU_TORCH = "torch==2.13.0+cpu"
PYTHON, PLATFORM = "3.11", "x86_64-manylinux_2_28"
UNSEEN = "was not looked up"
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*])?==([^ \\;]+)", re.MULTILINE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    lock = commands.add_parser("lock", help="write the locks anew")
    lock.add_argument("--torch-wheels", type=Path, help="a folder with torch's wheel for processors")
    for name in ("sbom", "licences"):
        described = commands.add_parser(name, help="of an environment")
        described.add_argument("python", help="the environment's python")
        described.add_argument("out", type=Path)
    audit = commands.add_parser("audit", help="known vulnerabilities of what is locked")
    audit.add_argument("locks", nargs="*", type=Path, default=_on_pypi())
    arguments = parser.parse_args()
    return int(globals()[f"_{arguments.command}"](arguments))


def _on_pypi() -> list[Path]:
    """The locks whose every package is known there; those for processors differ from them by torch alone."""
    return sorted(path for path in LOCKS.glob("*.txt") if not path.stem.endswith("-cpu"))


def _lock(arguments: argparse.Namespace) -> int:
    LOCKS.mkdir(exist_ok=True)
    for name, wanted in LOCKED.items():
        _compile(name, wanted, "")
        if name in ON_CPU and arguments.torch_wheels:
            _compile(f"{name}-cpu", (*wanted, "--find-links", str(arguments.torch_wheels)), CPU_TORCH)
    return 0


def _compile(name: str, wanted: tuple[str, ...], torch: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as also:
        also.write(torch)
        also.flush()
        source = ("pyproject.toml",) if "--group" not in wanted else ()
        command = ["uv", "pip", "compile", *source, *wanted, "-c", "constraints.txt", "-c", also.name]
        command += ["--generate-hashes", "--no-annotate", "--no-header", "--quiet"]
        command += ["--python-version", PYTHON, "--python-platform", PLATFORM]
        found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    note = f"# {name}: written by `supply.py lock` for Python {PYTHON} on {PLATFORM}. Install with --require-hashes.\n"
    (LOCKS / f"{name}.txt").write_text(note + found)


def _sbom(arguments: argparse.Namespace) -> int:
    command = ["cyclonedx-py", "environment", arguments.python, "--of", "JSON", "-o", str(arguments.out)]
    return subprocess.run([*command, "--pyproject", str(ROOT / "pyproject.toml")], check=False).returncode


def _licences(arguments: argparse.Namespace) -> int:
    """Markdown; fails for a package that names no licence."""
    command = ["pip-licenses", f"--python={arguments.python}", "--from=mixed", "--format=json", "--with-urls"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    lines = ["| package | version | licence |", "|---|---|---|"]
    lines += [f"| [{row['Name']}]({row['URL']}) | {row['Version']} | {_short(row['License'])} |" for row in rows]
    arguments.out.write_text("\n".join(lines) + "\n")
    unknown = [row["Name"] for row in rows if row["License"] in ("", "UNKNOWN")]
    print(f"{len(rows)} packages, {len(unknown)} without a licence: {', '.join(unknown) or 'none'}")
    return 1 if unknown else 0


def _short(licence: str) -> str:
    """A licence's name, or the first line of one that gives its whole text."""
    return licence.strip().splitlines()[0].replace("|", "/")


def _audit(arguments: argparse.Namespace) -> int:
    faults: list[str] = []
    for path in arguments.locks:
        command = [
            "pip-audit",
            "-r",
            str(path),
            "--require-hashes",
            "--disable-pip",
            "-f",
            "json",
            "--progress-spinner=off",
        ]
        try:
            found = subprocess.run(command, check=False, capture_output=True, text=True)
        except FileNotFoundError:
            print("pip-audit is not installed, so nothing was looked up; `make audit` installs it and runs this")
            return 1
        try:
            report = json.loads(found.stdout)
        except ValueError:
            faults.append(f"{path.name}: {found.stderr.strip() or 'pip-audit said nothing'}")
            continue
        locked = pins(path.read_text())
        faults += [f"{path.name}: {fault}" for fault in shortened(list(judged(report, locked)), locked)]
    print("\n".join(faults) or f"{len(arguments.locks)} locks, every package looked up, nothing known against them")
    return 1 if faults else 0


def shortened(faults: list[str], locked: Mapping[str, str]) -> list[str]:
    """One sentence if no package at all was looked up, which has one cause and not as many as there are packages."""
    if len(locked) < 2 or sum(UNSEEN in fault for fault in faults) < len(locked):
        return faults
    return [f"none of {len(locked)} packages was looked up, so the database is out of reach from here; {faults[0]}"]


def pins(text: str) -> dict[str, str]:
    """Name -> version of a lock; names in the form that indexes compare."""
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in PIN.findall(text)}


def judged(report: Mapping[str, Any], locked: Mapping[str, str]) -> Iterator[str]:
    """What speaks against a release: known vulnerabilities, and packages that nobody could look up."""
    seen = {re.sub(r"[-_.]+", "-", row["name"]).lower(): row for row in report.get("dependencies", ())}
    for name, version in locked.items():
        row = seen.get(name)
        if row is None or row.get("skip_reason"):
            yield f"{name} {version} {UNSEEN}: {row['skip_reason'] if row else 'not in the report'}"
            continue
        for fault in row["vulns"]:
            fixed = ", ".join(fault.get("fix_versions", ())) or "none"
            yield f"{name} {version} has {fault['id']}; fixed in: {fixed}"


if __name__ == "__main__":
    sys.exit(main())
