"""A tiny VAE, and files of it as people have them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from remote_vae.models.families import MODELS, find_recipe
from remote_vae.models.family import Model, Weights
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec

CONFIG: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "scaling_factor": 0.31,
    "shift_factor": 0.17,
}

LoadFile = Callable[[Weights], Weights]


@pytest.fixture(scope="session")
def tiny_vae() -> AutoencoderKL:
    torch.manual_seed(5)
    return AutoencoderKL(**CONFIG).eval()


@pytest.fixture
def tiny_weights(tiny_vae: AutoencoderKL) -> Weights:
    return dict(tiny_vae.state_dict())


@pytest.fixture
def load_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadFile:
    """Loads a file with these tensors as `sd3`, the row of which has the tiny architecture here."""
    monkeypatch.setitem(MODELS, "sd3", Model("sd3", find_recipe("sd3"), "some/where", "float16", config=CONFIG))

    def load_tensors(tensors: Weights) -> Weights:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "file.safetensors")
        return dict(load(ModelSpec("mine", str(tmp_path / "file.safetensors"), recipe="sd3")).module.state_dict())

    return load_tensors
