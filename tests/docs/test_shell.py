"""The documentation's shell commands and JSON, run or checked against the code."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner

from films import film, moving
from remote_vae.cli.main import app
from remote_vae.server import run
from remote_vae.server.app import _served

ROOT = Path(__file__).parents[2]
# Their commands change the machine they are given on, or the world; tests/deploy checks the files that they name.
ELSEWHERE = {ROOT / "docs" / "deploying.md", ROOT / "docs" / "publishing.md"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(bash|json)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FOUND = [(page.name, *block) for page in PAGES for block in BLOCK.findall(page.read_text()) if page not in ELSEWHERE]
SHELL = [
    pytest.param(code, id=f"{page}-{code.splitlines()[0][:40]}") for page, language, code in FOUND if language == "bash"
]
# What these blocks may call; a server is started no further than to its models, and nothing is installed.
RUN = (
    "remote-vae ",
    "python benchmarks/",
    "curl ",
    "openssl rand",
    "chmod ",
    "export ",
    "cp -r integrations",
    "python -c ",
)
CHECKED = (
    "remote-vae serve",
    "pip install",
    "ComfyUI/venv/bin/python -m pip install",
    "make ",
    "git clone ",
    "cd remote-vae",
    "docker ",
)
ASKS = re.compile(r"^(remote-vae (?:encode|decode|models|verify)(?!.*--url)[^#\n]*)", re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photo.jpg")
    Path("clip.mp4").write_bytes(film(moving(81, 16, 16), rate=16))
    save_file({"latent": np.zeros((1, 4, 8, 8), np.float32)}, "latents.safetensors")
    for name in ("folder", "my-vae", "ComfyUI/custom_nodes", "sdnext/extensions", "forge/extensions", "invokeai/nodes"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photo.jpg").write_bytes((tmp_path / "photo.jpg").read_bytes())
    for name in ("integrations", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    save_file({"x": np.zeros(1, np.float32)}, "vae.safetensors")
    return tmp_path


@pytest.mark.parametrize("code", SHELL)
def test_shell_of_the_pages(code: str, live: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run as they stand, but for the URL; `serve` is taken up to its models, what installs is checked."""
    lines = code.replace("\\\n", " ").splitlines()
    kept = [line for line in lines if line.strip() and not line.startswith(CHECKED)]
    assert [line for line in kept if not line.startswith(RUN)] == [], "add it to what may be run here"
    script = "\n".join(kept)
    script = (
        script.replace("--model sd1", "--model sd")
        .replace("--model wan2.1", "--model video")
        .replace("http://127.0.0.1:8000", live.url)
    )
    script = ASKS.sub(rf"\1 --url {live.url} ", script)
    # As it stands it would take minutes.
    tiny = f"--models sd={live.folder}/sd,recipe=sd1 --sizes 64 --directions decode --plans chosen --rivals none"
    script = script.replace("--models sd1 --sizes 512,1024 --random-weights", tiny)
    script = script.replace("--vae sd1", f"--vae sd={live.folder}/sd,recipe=sd1")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", script]
    names = {**os.environ, "PATH": path}
    said = subprocess.run(command, env=names, capture_output=True, text=True, timeout=240, check=False)
    assert said.returncode == 0, said.stderr + said.stdout
    for line in lines:
        if line.startswith("remote-vae serve"):
            check_serve(line, monkeypatch)
        elif "pip install" in line:
            check_install(line.partition("pip install")[2])
        elif line.startswith("docker "):
            check_docker(line, monkeypatch)


def check_serve(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flags are known, the values valid, the models resolved."""
    seen: list[Any] = []
    monkeypatch.setattr(run, "serve", lambda settings, **_: seen.append(settings))
    words = shlex.split(line, comments=True)[1:]
    said = CliRunner().invoke(app, words)
    if "--help" not in words:
        assert said.exit_code == 0, f"{line}: {said.output} {said.exception}"
        assert _served(seen[0])


def check_docker(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is built is a target of the Dockerfile, what is run has its name, and `serve` is checked as ever."""
    words, made = shlex.split(line, comments=True), (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    if words[1] == "build":
        assert (ROOT / words[words.index("-f") + 1]).is_file(), line
        assert f" AS {words[words.index('--target') + 1]}\n" in made, line
        return
    image = next(word for word in words if word.startswith("remote-vae:"))
    assert f" AS {image.partition(':')[2]}\n" in made, line
    monkeypatch.setenv("REMOTE_VAE_HOST", "0.0.0.0")
    monkeypatch.setenv(*words[words.index("-e") + 1].split("=", 1))
    check_serve(" ".join(["remote-vae", *words[words.index(image) + 1 :]]), monkeypatch)


def check_install(line: str) -> None:
    """What is installed is this project from its folder, with extras that it has."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in shlex.split(line, comments=True):
        found = re.fullmatch(r"\.(?:\[([\w,]+)\])?", word)
        assert found, line
        assert set(filter(None, (found.group(1) or "").split(","))) <= set(extras), line


def test_json_of_the_pages() -> None:
    """Every block of JSON is JSON."""
    for _, language, code in FOUND:
        if language == "json":
            json.loads(code)
