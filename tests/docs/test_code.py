"""The documentation's Python and the examples, run against a live server."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- stub: (\w+) -->\n)?```python\n(.*?)```", re.DOTALL)
BLOCKS = [(page.name, stub, code) for page in PAGES for stub, code in BLOCK.findall(page.read_text())]
CLIENTS = ("remote_vae", "diffusers.utils.remote_utils")
CASES = [
    pytest.param(stub, code, client, id=f"{page}-{stub or 'plain'}-{client}")
    for page, stub, code in BLOCKS
    for client in (CLIENTS if "import remote_decode" in code else CLIENTS[:1])
]
HERE = {"/sd1": "/sd", "/flux1": "/flux", "/hunyuanvideo": "/video", 'model="sd1"': 'model="sd"'}
LATENTS = {
    "StableDiffusionPipeline": torch.randn(1, 4, 8, 8).half(),
    "FluxPipeline": torch.randn(1, 1024, 64).bfloat16(),
    "HunyuanVideoPipeline": torch.randn(1, 16, 2, 4, 4).half(),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REMOTE_VAE_API_KEY", raising=False)
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photo.jpg")
    return tmp_path


class Stub:
    """A pipeline whose weights nobody has to fetch: takes what the real one takes, gives latents of its layout."""

    def __init__(self, name: str) -> None:
        self._real, self._latents = getattr(diffusers, name), LATENTS[name]

    def from_pretrained(self, repository: str, *, vae: None, torch_dtype: torch.dtype) -> "Stub":
        assert repository.count("/") == 1
        return self

    def __call__(self, *words: Any, **options: Any) -> Any:
        inspect.signature(self._real.__call__).bind(self, *words, **options)
        assert options["output_type"] == "latent"
        return SimpleNamespace(images=self._latents, frames=self._latents)


@pytest.mark.filterwarnings("ignore:.*do_scaling.*is deprecated")
@pytest.mark.parametrize(("stub", "code", "client"), CASES)
def test_code_of_the_pages(
    stub: str, code: str, client: str, live: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block of Python runs as it stands, but for the URL; the ones with remote_decode with diffusers' own too."""
    if stub:
        monkeypatch.setattr(diffusers, stub, Stub(stub))
    before = set(folder.iterdir())
    code = code.replace("http://127.0.0.1:8000", live.url).replace("from remote_vae import", f"from {client} import")
    for there, here in HERE.items():
        code = code.replace(there, here)
    exec(compile(code, "block", "exec"), {})
    assert all(path.stat().st_size > 500 for path in folder.iterdir())
    assert bool(set(folder.iterdir()) - before) == (".save(" in code or ".write(" in code)


def test_the_readme_shows_every_client() -> None:
    """The README has code for SD, Flux, video and our own client."""
    shown = [stub for page, stub, _ in BLOCKS if page == "README.md"]
    assert shown == [*LATENTS, ""]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples(path: Path, live: Any, folder: Path) -> None:
    """Each example runs as its docstring says, and writes a picture of the photograph's size."""
    assert f"Usage: python examples/{path.name} photo.jpg [URL]" in path.read_text()
    command = [sys.executable, str(path), "photo.jpg", live.url]
    said = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, check=False)
    assert said.returncode == 0, said.stderr
    written = next(folder.glob(f"{path.stem}.*"))
    with Image.open(written) as picture:
        assert picture.size == ((4 if path.stem == "with_asyncio" else 1) * 96, 64)
