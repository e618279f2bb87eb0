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
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- stub: (\w+) -->\n)?```python\n(.*?)```", re.DOTALL)
BLOCKS = [(page.name, stub, code) for page in PAGES for stub, code in BLOCK.findall(page.read_text())]
CLIENTS = ("remote_vae", "diffusers.utils.remote_utils")
CASES = [
    pytest.param(stub, code, client, id=f"{page}-{stub or 'plain'}-{client}")
    for page, stub, code in BLOCKS
    for client in (CLIENTS if "import remote_decode" in code else CLIENTS[:1])
]
HERE = {
    "/sd1": "/sd",
    "/sdxl": "/sd",
    "/flux1": "/flux",
    "/flux2": "/flux",
    "/hunyuanvideo": "/video",
    "/qwen-image-2.1": "/flux",
    "/qwen-image": "/flux",
    'model="sd1"': 'model="sd"',
    'model="hunyuanvideo"': 'model="video"',
    'model="taesd"': 'model="sd"',
}
LATENTS = {
    "StableDiffusionPipeline": torch.randn(1, 4, 8, 8).half(),
    "StableDiffusionXLPipeline": torch.randn(1, 4, 8, 8).half(),
    "StableDiffusionImg2ImgPipeline": torch.randn(1, 4, 8, 8).half(),
    "FluxPipeline": torch.randn(1, 1024, 64).bfloat16(),
    "Flux2Pipeline": torch.randn(1, 1024, 64).bfloat16(),
    "QwenImagePipeline": torch.randn(1, 1024, 64).bfloat16(),
    "QwenImage21Pipeline": torch.randn(1, 1024, 64).bfloat16(),
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
    """A pipeline whose weights nobody has to fetch: takes what the real one takes, gives latents of its layout.

    With a VAE it is the real one, with a tiny network.
    """

    def __init__(self, name: str) -> None:
        self._real, self._latents = getattr(diffusers, name), LATENTS[name]

    def from_pretrained(self, repository: str, *, vae: Any, torch_dtype: torch.dtype | None = None) -> Any:
        assert repository.count("/") == 1
        return self if vae is None else with_vae(self._real, vae)

    def __call__(self, *words: Any, **options: Any) -> Any:
        inspect.signature(self._real.__call__).bind(self, *words, **options)
        assert options["output_type"] == "latent"
        return SimpleNamespace(images=self._latents, frames=self._latents)


def with_vae(cls: Any, vae: Any) -> Any:
    """Takes words, and gives a real pipeline what a text encoder would have made of them."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=16,
        norm_num_groups=4,
    )
    nothing = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    pipe = cls(vae=vae, unet=unet, scheduler=scheduler, requires_safety_checker=False, **nothing)
    words = {"prompt_embeds": torch.zeros(1, 7, 16), "guidance_scale": 1.0, "num_inference_steps": 2}
    return lambda prompt: pipe(**words, height=64, width=64)


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
    """The README has code for a pipeline's VAE, SD, Flux, video and our own client."""
    shown = [stub for page, stub, _ in BLOCKS if page == "README.md"]
    assert {"StableDiffusionPipeline", "FluxPipeline", "HunyuanVideoPipeline", ""} <= set(shown)


def test_five_lines_to_the_first_picture() -> None:
    """The first block of the README, which runs as it stands, has a picture by RemoteVAE after five lines."""
    page, _, code = BLOCKS[0]
    assert page == "README.md"
    assert "RemoteVAE(" in code
    assert len([line for line in code.splitlines() if line]) <= 5


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples(path: Path, live: Any, folder: Path) -> None:
    """Each example has at most 60 lines, runs as its docstring says, and writes what it is named for."""
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    usage = re.search(rf"Usage: python examples/{path.name}( photo\.jpg)? \[URL\]", text)
    assert usage
    command = [sys.executable, str(path), *(["photo.jpg"] if usage.group(1) else []), live.url]
    said = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120, check=False)
    assert said.returncode == 0, said.stderr
    written = next(folder.glob(f"{path.stem}.*"))
    if written.suffix == ".mp4":
        assert written.read_bytes()[4:8] == b"ftyp"
        return
    with Image.open(written) as picture:
        assert picture.size == ((4 if path.stem in ("with_asyncio", "with_queue") else 1) * 96, 64)
