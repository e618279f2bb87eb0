"""Files with the names of MiniMax's own code."""

import re
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from remote_vae.models.families import MODELS
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec

from ..numerics.cases.minimax import tiny_minimax

NAMES = (
    (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample."),
    (r"conv_shortcut", "nin_shortcut"),
    (r"proj_in", "x_embedder"),
    (r"to_out\.0", "to_out"),
    (r"ff\.net\.0\.proj", "ff.w1"),
    (r"ff\.net\.2", "ff.w2"),
)


def original(weights: dict[str, torch.Tensor], heads: int) -> dict[str, torch.Tensor]:
    """As the authors publish them: fused attention, the gate before the value, statistics, and a tensor of training."""
    found = {"decoder.mask_token": torch.zeros(1, 1, 4), "latents_mean": torch.ones(24), "latents_std": torch.ones(24)}
    for ours, tensor in weights.items():
        name = reduce(lambda text, rule: re.sub(*rule, text), NAMES, ours)
        if ".to_q." in name:
            parts = [weights[ours.replace(".to_q.", f".to_{part}.")] for part in "qkv"]
            rows = [row for head in zip(*(part.chunk(heads) for part in parts), strict=True) for row in head]
            found[name.replace("to_q", "to_qkv")] = torch.cat(rows)
        elif ".ff.w1." in name:
            value, gate = tensor.chunk(2)
            found[name] = torch.cat((gate, value))
        elif ".to_k." not in name and ".to_v." not in name:
            found[name] = tensor
    return found


def test_a_file_of_the_authors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor gets its place, and what the decoder does not need is left out."""
    torch.manual_seed(2)
    module = tiny_minimax().eval()
    config = {name: value for name, value in module.config.items() if not name.startswith("_")}
    monkeypatch.setitem(MODELS, "minimax-h3", replace(MODELS["minimax-h3"], config=config))
    weights = module.state_dict()
    for tensor in weights.values():
        tensor.normal_()
    save_file(original(weights, heads=2), tmp_path / "minimax_h3_video_vae.safetensors")
    loaded = load(ModelSpec("mine", str(tmp_path / "minimax_h3_video_vae.safetensors"), recipe="minimax-h3")).module
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in weights.items())
