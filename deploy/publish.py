"""`publish.py ADDRESS`: what an index takes, a source distribution and a wheel, built into dist/; needs `build`.

An index shows the README without the folders beside it. So in a copy of the repository, links become absolute and the
project's URLs get ADDRESS, such as https://github.com/OWNER/remote-vae; then the copy is built.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
NOWHERE: Final = "https://repository.invalid/remote-vae"
LINK: Final = re.compile(r'(\]\(|\b(?:src|href)=")([^)#"\s]+)')
PICTURES: Final = (".jpg", ".png", ".svg", ".webp", ".gif")


def main() -> int:
    address = sys.argv[1].rstrip("/") if len(sys.argv) == 2 else ""
    if not address.startswith("https://") or address == NOWHERE:
        print("give the repository's address: python deploy/publish.py https://github.com/OWNER/remote-vae")
        return 2
    if changed := _git("status", "--porcelain"):
        print(f"commit or remove what has changed, because it would be published:\n{changed}")
        return 2
    return build(address, ROOT / "dist")


def build(address: str, out: Path, *words: str) -> int:
    """Builds the tracked files into `out`; `words` are further ones for `python -m build`. Returns its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "remote-vae"
        for name in tracked():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
        project = copy / "pyproject.toml"
        version = tomllib.loads(project.read_text())["project"]["version"]
        project.write_text(project.read_text().replace(NOWHERE, address))
        readme = copy / "README.md"
        readme.write_text(absolute(readme.read_text(), address, f"v{version}"))
        command = [sys.executable, "-m", "build", "--outdir", str(out), *words, str(copy)]
        return subprocess.run(command, check=False).returncode


def absolute(text: str, address: str, tag: str) -> str:
    """The text with links to files of the repository, as they are at the tag."""

    def replaced(link: re.Match[str]) -> str:
        before, path = link.groups()
        if not (ROOT / path).exists():  # an address already, or code that looks like a link
            return link[0]
        return f"{before}{address}/{'raw' if path.endswith(PICTURES) else 'blob'}/{tag}/{path}"

    return LINK.sub(replaced, text)


def tracked() -> list[str]:
    return _git("ls-files").splitlines()


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
