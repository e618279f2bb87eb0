"""What every test relies on."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

if TYPE_CHECKING:
    import torch  # most tests do without it, and it takes seconds

# One thread here and in every process that a test starts: the convolution library picks its algorithm by the number of
# threads, and equal pixels are promised for equal arithmetic.
os.environ["OMP_NUM_THREADS"] = "1"

TINY = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "sample_size": 64,
}


@dataclass(frozen=True)
class Live:
    """A server's address, its process, the very modules whose weights it serves, and the folder of each by name."""

    url: str
    process: subprocess.Popen[bytes]
    modules: "dict[str, torch.nn.Module]"
    folder: Path

    def post(self, path: str, **kwargs: object) -> requests.Response:
        return requests.post(self.url + path, timeout=60, **kwargs)  # type: ignore[arg-type]


def make_modules() -> "dict[str, torch.nn.Module]":
    import torch
    from diffusers import AutoencoderKL, AutoencoderKLHunyuanVideo

    torch.manual_seed(7)
    video_blocks = {
        "down_block_types": ("HunyuanVideoDownBlock3D",) * 4,
        "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
        "block_out_channels": (8, 8, 8, 8),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }
    return {
        "sd": AutoencoderKL(**TINY, latent_channels=4, scaling_factor=0.31).eval(),
        "flux": AutoencoderKL(
            **TINY, latent_channels=16, scaling_factor=0.41, shift_factor=0.17, use_quant_conv=False
        ).eval(),
        "video": AutoencoderKLHunyuanVideo(**video_blocks, latent_channels=16, scaling_factor=0.47).eval(),
    }


RECIPES = {"sd": "sd1", "flux": "flux1", "video": "hunyuanvideo"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A real server, as a user starts it, with three tiny models whose factors are neither 0 nor 1."""
    modules, folder = make_modules(), tmp_path_factory.mktemp("models")
    arguments: list[str] = []
    for name, module in modules.items():
        module.save_pretrained(folder / name)
        arguments += ["--model", f"{name}={folder / name},recipe={RECIPES[name]}"]
    port = free_port()
    command = [sys.executable, "-m", "remote_vae.cli.main", "serve", "--port", str(port), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield Live(url, process, modules, folder)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended while it was starting"
        try:
            if requests.get(url + "/ready", timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server did not become ready")
