"""Files with the names of LTX's own code."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ltx2_vae_to_diffusers, convert_ltx_vae_checkpoint_to_diffusers
from safetensors.torch import save_file

from remote_vae.models.families import MODELS, family_of
from remote_vae.models.family import Model
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec

CONVERTERS = {  # those versions that diffusers converts at any width
    "ltx": convert_ltx_vae_checkpoint_to_diffusers,
    "ltx-0.9.1": convert_ltx_vae_checkpoint_to_diffusers,
    "ltx2": convert_ltx2_vae_to_diffusers,
}
# What each block of diffusers is in the original list of the decoder or encoder.
DECODER_090 = {
    "mid_block": 0,
    "up_blocks.0": 1,
    "up_blocks.1.upsamplers.0": 2,
    "up_blocks.1": 3,
    "up_blocks.2.conv_in": 4,
    "up_blocks.2.upsamplers.0": 5,
    "up_blocks.2": 6,
    "up_blocks.3.conv_in": 7,
    "up_blocks.3.upsamplers.0": 8,
    "up_blocks.3": 9,
}
ENCODER_090 = {
    "down_blocks.0": 0,
    "down_blocks.0.downsamplers.0": 1,
    "down_blocks.0.conv_out": 2,
    "down_blocks.1": 3,
    "down_blocks.1.downsamplers.0": 4,
    "down_blocks.1.conv_out": 5,
    "down_blocks.2": 6,
    "down_blocks.2.downsamplers.0": 7,
    "down_blocks.3": 8,
    "mid_block": 9,
}


def in_turn(kind: str, sampler: str, blocks: int) -> dict[str, int]:
    """Blocks and resamplers in one list; the decoder's begins with the middle, and the encoder's ends with it."""
    up = kind == "up_blocks"
    found = {f"{kind}.{block}": 2 * block + 2 * up for block in range(blocks)}
    found |= {f"{kind}.{block}.{sampler}.0": 2 * block + 1 for block in range(blocks)}
    return found | {"mid_block": 0 if up else 2 * blocks}


def original_name(name: str, lists: dict[str, dict[str, int]]) -> str:
    if name.startswith("latents_"):
        return "per_channel_statistics." + {"latents_mean": "mean-of-means", "latents_std": "std-of-means"}[name]
    side, _, rest = name.partition(".")
    block = max((each for each in lists[side] if rest.startswith(f"{each}.")), key=len, default=None)
    if block is not None:
        kind = "up_blocks" if side == "decoder" else "down_blocks"
        rest = f"{kind}.{lists[side][block]}{rest.removeprefix(block)}"
    elif rest.startswith(("time_embedder", "scale_shift_table")):
        rest = f"last_{rest}"
    return f"{side}.{rest}".replace("resnets", "res_blocks")


@pytest.mark.parametrize("prefix", ["vae.", ""])
@pytest.mark.parametrize("name", ["ltx", "ltx-0.9.1", "ltx-0.9.7", "ltx2", "ltx2.3"])
def test_files_with_the_names_of_ltx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, prefix: str) -> None:
    """A file with original names, alone or in a whole checkpoint, gives the weights that diffusers' names give."""
    torch.manual_seed(5)
    row = MODELS[name]
    config = {**row.config, **thin(row)}
    module = family_of(row).load_class()(**config)
    module.latents_mean.uniform_(-1, 1)
    new = name.startswith("ltx2")
    downs, ups = (len(config[f"{each}block_out_channels"]) for each in ("", "decoder_"))
    downs -= name == "ltx-0.9.7"
    lists = {
        "encoder": in_turn("down_blocks", "downsamplers", downs) if new or name == "ltx-0.9.7" else ENCODER_090,
        "decoder": in_turn("up_blocks", "upsamplers", ups) if name != "ltx" else DECODER_090,
    }
    weights = {}
    for key, tensor in module.state_dict().items():
        old = key if new else re.sub(r"conv_shortcut\.conv\.", "conv_shortcut.", key.replace("norm3.", "norm3.norm."))
        weights[prefix + original_name(old, lists)] = tensor.contiguous()
    weights[f"{prefix}per_channel_statistics.mean-of-stds"] = torch.zeros(128)
    weights[f"{prefix}per_channel_statistics.channel"] = torch.zeros(128)
    save_file(weights, tmp_path / "original.safetensors")
    monkeypatch.setitem(MODELS, name, Model(name, row.recipe, "some/where", "bfloat16", config=config))
    monkeypatch.setattr("remote_vae.models.loader.family_of", lambda model: family_of(row))
    found = load(ModelSpec("mine", str(tmp_path / "original.safetensors"), recipe=name)).module.state_dict()
    wanted = module.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    if prefix and name in CONVERTERS:
        assert CONVERTERS[name](weights).keys() == wanted.keys()


def thin(row: Model) -> dict[str, Any]:
    """The row's architecture with a sixteenth of its channels and one layer to a block."""
    cls = family_of(row).load_class()
    defaults = {item.name: item.default for item in inspect.signature(cls.__init__).parameters.values()}
    config = {**defaults, **row.config}
    names = ("block_out_channels", "decoder_block_out_channels")
    found = {name: tuple(max(8, width // 16) for width in config[name]) for name in names}
    return found | {name: (1,) * len(config[name]) for name in ("layers_per_block", "decoder_layers_per_block")}
