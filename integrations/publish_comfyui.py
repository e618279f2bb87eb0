"""Makes a folder of the ComfyUI nodes that can be published by itself, as a repository or in ComfyUI's registry.

`python integrations/publish_comfyui.py https://host/owner/remote-vae PUBLISHER FOLDER`: the address of a public copy of
this repository, from which the nodes' client is installed, and the name that ComfyUI's registry knows you by.
"""

import argparse
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
NODES: Final = ROOT / "integrations" / "comfyui"
ADDRESS: Final = "https://repository.invalid/remote-vae"
PUBLISHER: Final = "publisher-invalid"
LEFT_OUT: Final = shutil.ignore_patterns("__pycache__", "*.pyc")


def publish(repository: str, publisher: str, folder: Path, commit: str) -> None:
    """Copies the nodes and the licence, and fills in the address with the commit, so that both always fit.

    *Raises* ValueError for an address that pip could not install from, FileExistsError if the folder is there.
    """
    if not re.fullmatch(r"https://[^\s@#]+[^\s@#/]", repository):
        raise ValueError(f"{repository!r} must be the https address of a repository, without a key in it")
    if not re.fullmatch(r"[a-z0-9-]+", publisher):
        raise ValueError(f"{publisher!r} must be a publisher's id: small letters, digits and hyphens")
    shutil.copytree(NODES, folder, ignore=LEFT_OUT)
    shutil.copy(ROOT / "LICENSE", folder)
    for path in (folder / "pyproject.toml", folder / "requirements.txt"):
        text = path.read_text().replace(f"git+{ADDRESS}", f"git+{repository}@{commit}")
        path.write_text(text.replace(ADDRESS, repository).replace(PUBLISHER, publisher))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository")
    parser.add_argument("publisher")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    publish(given.repository, given.publisher, given.folder, head.stdout.strip())


if __name__ == "__main__":
    main()
