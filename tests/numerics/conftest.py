"""A live server whose models are tiny VAEs of every family, each with factors and statistics of its own."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLHunyuanVideo, AutoencoderKLWan, AutoencoderTiny

from remote_vae.server.app import build_app
from remote_vae.server.settings import Settings

TINY: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
TINY_VIDEO: dict[str, Any] = {
    **TINY,
    "down_block_types": ("HunyuanVideoDownBlock3D",) * 4,
    "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
}
TINY_PREVIEW: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8),
    "num_encoder_blocks": (1, 1, 1, 1),
    "num_decoder_blocks": (1, 1, 1, 1),
}
THREE_BLOCKS: dict[str, Any] = {  # a ratio of 4, as the VAE of the x4 upscaler has
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 8),
}
NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
NO_ATTENTION = {"mid_block_add_attention": False}
STATISTICS = {"latents_mean": [-0.7, 0.4, 0.2, -0.3], "latents_std": [1.7, 0.6, 1.3, 0.8]}
RECIPES = {
    "sd": "sd1",
    "xl": "sdxl",
    "play": "sdxl",
    "three": "sd3",
    "flux": "flux1",
    "video": "hunyuanvideo",
    "tiny": "taesd",
    "tinyflux": "taef1",
    "four": "sd1",
    "cog": "cogview4",
    "flux2": "flux2",
    "klein": "flux2-klein",
}


def tiny_wan(cls: Any = AutoencoderKLWan, channels: int = 16, **config: Any) -> Any:
    """Qwen-Image's class takes the same config."""
    return cls(
        **{"base_dim": 8, "num_res_blocks": 1, "z_dim": channels, **config},
        latents_mean=[0.1 * index - 0.7 for index in range(channels)],
        latents_std=[0.1 * index + 0.6 for index in range(channels)],
    )


WAN_22: dict[str, Any] = {
    "channels": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}


@dataclass(frozen=True)
class Families:
    """A server's address, and the very modules whose weights it serves."""

    url: str
    modules: dict[str, Any]


def make_modules() -> dict[str, Any]:
    torch.manual_seed(11)
    modules = {
        "sd": AutoencoderKL(**TINY, latent_channels=4, scaling_factor=0.31).eval(),
        "xl": AutoencoderKL(**TINY, latent_channels=4, scaling_factor=0.23).eval(),
        "play": AutoencoderKL(**TINY, **STATISTICS, latent_channels=4, scaling_factor=0.57).eval(),
        "three": AutoencoderKL(**TINY, **NO_QUANT, latent_channels=16, scaling_factor=1.37, shift_factor=0.29).eval(),
        "flux": AutoencoderKL(**TINY, **NO_QUANT, latent_channels=16, scaling_factor=0.41, shift_factor=-0.17).eval(),
        "video": AutoencoderKLHunyuanVideo(**TINY_VIDEO, latent_channels=16, scaling_factor=0.47).eval(),
        "tiny": AutoencoderTiny(**TINY_PREVIEW, latent_channels=4).eval(),
        "tinyflux": AutoencoderTiny(**TINY_PREVIEW, latent_channels=16).eval(),
        "four": AutoencoderKL(**{**TINY, **THREE_BLOCKS}, latent_channels=4, scaling_factor=0.08333).eval(),
        "cog": AutoencoderKL(
            **TINY, **NO_QUANT, **NO_ATTENTION, latent_channels=16, scaling_factor=0.83, shift_factor=0.19
        ).eval(),
    }
    for name in ("flux2", "klein"):
        modules[name] = AutoencoderKLFlux2(**TINY, latent_channels=8).eval()
        modules[name].bn.running_mean.uniform_(-1, 1)  # untrained ones are zero and one, and would hide their use
        modules[name].bn.running_var.uniform_(0.3, 3)
    with torch.no_grad():
        for name in ("tiny", "tinyflux"):  # untrained ones are all but black
            modules[name].decoder.layers[-1].weight.mul_(5)
            modules[name].decoder.layers[-1].bias.add_(0.5)
    return modules


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    with serve(make_modules(), RECIPES, tmp_path_factory.mktemp("families")) as found:
        yield found


@contextlib.contextmanager
def serve(modules: dict[str, Any], recipes: dict[str, str], folder: Path) -> Iterator[Families]:
    """A live server of these modules, which are saved in `folder` for it."""
    for name, module in modules.items():
        module.save_pretrained(folder / name)
    specs = tuple(f"{name}={folder / name},recipe={recipes[name]}" for name in modules)
    settled, failures = threading.Event(), list[BaseException]()
    app = build_app(
        Settings(models=specs),
        on_ready=settled.set,
        on_failure=lambda failure: (failures.append(failure), settled.set()),
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert settled.wait(240)
            assert not failures, failures
            yield Families(f"http://127.0.0.1:{listener.getsockname()[1]}", modules)
        finally:
            server.should_exit = True
            thread.join(30)
