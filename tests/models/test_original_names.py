"""Single files with the names of the authors' code: every tensor gets its place."""

import re
from collections.abc import Callable
from functools import reduce
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLMiniMaxH3

from remote_vae.models.families import MODELS, family_of
from remote_vae.models.files import Stored
from remote_vae.models.tensors import fit_tensors, rename

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

# What diffusers' names are in the authors' files, written from those files and not from the loader's tables.
MIDDLE: Rules = (
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1."),
    (r"mid_block\.attentions\.0\.(?:to_out\.0|proj|proj_out)\.", "mid.attn_1.proj_out."),
    (r"mid_block\.attentions\.0\.(?:group_)?norm", "mid.attn_1.norm"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)
LEVELS: Rules = (
    (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample."),
)
FROM_LATENT: Rules = (
    (r"up_blocks\.(\d)\.resnets\.", r"up.\1.block."),
    (r"up_blocks\.(\d)\.upsamplers\.0\.", r"up.\1.upsample."),
)
FROM_PICTURE: Rules = (
    (r"up_blocks\.(\d)\.resnets\.", lambda match: f"up.{3 - int(match[1])}.block."),
    (r"up_blocks\.(\d)\.upsamplers\.0\.", lambda match: f"up.{3 - int(match[1])}.upsample."),
)
IN_ENCODER: Rules = ((r"^quant_conv", "encoder.quant_conv"), (r"^post_quant_conv", "decoder.post_quant_conv"))


def in_one_row(match: re.Match[str]) -> str:
    """HunyuanImage's levels: two blocks each on the way down, three on the way up, and a layer between two levels."""
    blocks = 2 if match[1] == "down" else 3
    level, step = divmod(int(match[2]), blocks + 1)
    return f"{match[1]}.{level}." + (f"{match[1]}sample." if step == blocks else f"block.{step}.")


ROWS: Rules = ((r"(down|up)_blocks\.(\d+)\.", in_one_row),)
FILES: dict[str, tuple[Rules, dict[str, str]]] = {
    "sdxl": (
        (*LEVELS, *FROM_PICTURE, *MIDDLE),
        {
            "decoder.up.3.block.0.conv1.weight": "decoder.up_blocks.0.resnets.0.conv1.weight",
            "decoder.up.1.upsample.conv.bias": "decoder.up_blocks.2.upsamplers.0.conv.bias",
            "decoder.up.0.block.0.nin_shortcut.weight": "decoder.up_blocks.3.resnets.0.conv_shortcut.weight",
            "encoder.down.2.downsample.conv.weight": "encoder.down_blocks.2.downsamplers.0.conv.weight",
            "encoder.mid.attn_1.proj_out.weight": "encoder.mid_block.attentions.0.to_out.0.weight",
            "quant_conv.weight": "quant_conv.weight",
        },
    ),
    "flux1": ((*LEVELS, *FROM_PICTURE, *MIDDLE), {}),
    "flux2": (
        (*LEVELS, *FROM_PICTURE, *MIDDLE, *IN_ENCODER),
        {
            "encoder.quant_conv.bias": "quant_conv.bias",
            "decoder.post_quant_conv.weight": "post_quant_conv.weight",
            "bn.running_mean": "bn.running_mean",
        },
    ),
    "hunyuanvideo": (
        (*LEVELS, *FROM_PICTURE, *MIDDLE),
        {
            "decoder.up.3.block.0.conv1.conv.weight": "decoder.up_blocks.0.resnets.0.conv1.conv.weight",
            "encoder.down.0.downsample.conv.conv.weight": "encoder.down_blocks.0.downsamplers.0.conv.conv.weight",
            "decoder.mid.attn_1.q.weight": "decoder.mid_block.attentions.0.to_q.weight",
        },
    ),
    "hunyuanvideo-1.5": (
        (*LEVELS, *FROM_LATENT, *MIDDLE),
        {
            "decoder.up.0.block.2.norm1.gamma": "decoder.up_blocks.0.resnets.2.norm1.gamma",
            "decoder.up.1.upsample.conv.conv.bias": "decoder.up_blocks.1.upsamplers.0.conv.conv.bias",
            "encoder.mid.attn_1.norm.gamma": "encoder.mid_block.attentions.0.norm.gamma",
            "decoder.mid.attn_1.proj_out.weight": "decoder.mid_block.attentions.0.proj_out.weight",
            "encoder.norm_out.gamma": "encoder.norm_out.gamma",
        },
    ),
    "hunyuan-image-refiner": (
        (*LEVELS, *FROM_LATENT, *MIDDLE),
        {"encoder.down.2.block.1.conv2.conv.bias": "encoder.down_blocks.2.resnets.1.conv2.conv.bias"},
    ),
    "hunyuan-image-2.1": (
        (*ROWS, *MIDDLE),
        {
            "encoder.down.0.downsample.conv.weight": "encoder.down_blocks.2.conv.weight",
            "encoder.down.5.block.1.conv2.bias": "encoder.down_blocks.16.conv2.bias",
            "decoder.up.0.block.2.norm1.weight": "decoder.up_blocks.2.norm1.weight",
            "decoder.up.4.upsample.conv.bias": "decoder.up_blocks.19.conv.bias",
            "decoder.up.5.block.0.conv1.weight": "decoder.up_blocks.20.conv1.weight",
            "decoder.mid.attn_1.proj_out.bias": "decoder.mid_block.attentions.0.proj.bias",
            "encoder.norm_out.weight": "encoder.norm_out.weight",
        },
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
def test_every_tensor_gets_its_place(name: str, prefix: str) -> None:
    """Each tensor of the true architecture, by its original name, is renamed to the one that it has in diffusers."""
    rules, published = FILES[name]
    model = MODELS[name]
    family = family_of(model)
    with torch.device("meta"):
        module = family.load_class()(**model.config)
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    originals = {key: reduce(lambda text, rule: re.sub(*rule, text), rules, key) for key in shapes}
    assert len(set(originals.values())) == len(shapes)
    assert sum(key != original for key, original in originals.items()) > len(shapes) / 2
    assert {originals[ours]: ours for ours in published.values()} == published

    file = {
        prefix + originals[key]: Stored(
            Path("file"), "BF16", (*shape, 1, 1) if "attn_1.q.w" in originals[key] else shape
        )
        for key, shape in shapes.items()
    }
    fit = fit_tensors(file, module, family.convert)
    assert fit.whole, fit.explain()
    marked = {originals[key]: torch.tensor(number) for number, key in enumerate(shapes)}
    renamed = rename(marked, module, family.convert)
    assert {key: int(tensor) for key, tensor in renamed.items()} == {key: number for number, key in enumerate(shapes)}


@pytest.mark.parametrize("name", FILES)
def test_names_of_diffusers_stay(name: str) -> None:
    """A file with diffusers' own names is left as it is."""
    model = MODELS[name]
    family = family_of(model)
    with torch.device("meta"):
        module = family.load_class()(**model.config)
    marked = {key: torch.tensor(number) for number, key in enumerate(module.state_dict())}
    assert rename(marked, module, family.convert) == marked


MINIMAX: Rules = (
    (r"decoder\.proj_in\.", "decoder.x_embedder."),
    (r"attn\.to_out\.0\.", "attn.to_out."),
    (r"ff\.net\.0\.proj\.", "ff.w1."),
    (r"ff\.net\.2\.", "ff.w2."),
)


def of_minimax(state: dict[str, torch.Tensor], heads: int) -> dict[str, torch.Tensor]:
    """Tensors as MiniMax's own file has them: query, key and value by head in one matrix, the gate before the value."""
    found = {}
    for name, tensor in state.items():
        original = reduce(lambda text, rule: re.sub(*rule, text), (*LEVELS, *MIDDLE, *MINIMAX), name)
        if ".to_q." in name:
            parts = [state[name.replace(".to_q.", f".to_{part}.")].unflatten(0, (heads, -1)) for part in "qkv"]
            found[original.replace(".to_q.", ".to_qkv.")] = torch.stack(parts, 1).flatten(0, 2)
        elif ".ff.w1." in original:
            value, gate = tensor.chunk(2)
            found[original] = torch.cat([gate, value])
        elif ".to_k." not in name and ".to_v." not in name:
            found[original] = tensor
    return {**found, "decoder.mask_token": torch.zeros(1), "latents_mean": torch.zeros(24)}


def test_minimax() -> None:
    """The tensors of MiniMax-H3's own file, which joins and turns some of them, get their places and their order."""
    torch.manual_seed(0)
    module = AutoencoderKLMiniMaxH3(
        block_out_channels=(4, 8, 8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        decoder_num_layers=2,
        decoder_num_attention_heads=2,
        decoder_attention_head_dim=8,
    )
    wanted = module.state_dict()
    original = of_minimax(wanted, heads=2)
    assert "encoder.down.1.block.0.nin_shortcut.weight" in original
    assert "decoder.transformer_blocks.1.attn.to_qkv.bias" in original
    found = rename(original, module, family_of(MODELS["minimax-h3"]).convert)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


DC_AE: Rules = (
    (r"^(encoder|decoder)\.(?:down|up)_blocks\.(\d)\.(\d+)\.", r"\1.stages.\2.op_list.\3."),
    (r"attn\.to_q\.", "context_module.main.qkv.conv."),
    (r"attn\.to_qkv_multiscale\.0\.proj_in\.", "context_module.main.aggreg.0.0."),
    (r"attn\.to_qkv_multiscale\.0\.proj_out\.", "context_module.main.aggreg.0.1."),
    (r"attn\.to_out\.", "context_module.main.proj.conv."),
    (r"attn\.norm_out\.", "context_module.main.proj.norm."),
    (r"conv_out\.conv_inverted\.", "local_module.main.inverted_conv.conv."),
    (r"conv_out\.conv_depth\.", "local_module.main.depth_conv.conv."),
    (r"conv_out\.conv_point\.", "local_module.main.point_conv.conv."),
    (r"(op_list\.\d+)\.conv_out\.norm\.", r"\1.local_module.main.point_conv.norm."),
    (r"(op_list\.\d+)\.conv([12])\.", r"\1.main.conv\2.conv."),
    (r"(op_list\.\d+)\.norm\.", r"\1.main.conv2.norm."),
    (r"(decoder\.stages\.\d\.op_list\.0)\.conv\.", r"\1.main.conv.conv."),
    (r"^(encoder|decoder)\.conv_in\.", r"\1.project_in.conv."),
    (r"^encoder\.conv_out\.", "encoder.project_out.op_list.0.conv."),
    (r"^decoder\.norm_out\.", "decoder.project_out.op_list.0."),
    (r"^decoder\.conv_out\.", "decoder.project_out.op_list.2.conv."),
)


@pytest.mark.parametrize("prefix", ["", "vae."])
def test_dc_ae(prefix: str) -> None:
    """The tensors of Sana's VAE in its authors' own file, which joins query, key and value, are a whole VAE."""
    model = MODELS["sana"]
    family = family_of(model)
    with torch.device("meta"):
        module = family.load_class()(**model.config)
    file = {}
    for name, tensor in module.state_dict().items():
        original = prefix + reduce(lambda text, rule: re.sub(*rule, text), DC_AE, name)
        rows, *rest = tensor.shape
        joined = (3 * rows, *rest) if ".to_q." in name else (rows, *rest)
        as_convolution = (1, 1) if original.endswith((".qkv.conv.weight", ".proj.conv.weight")) else ()
        if ".to_k." not in name and ".to_v." not in name:
            file[original] = Stored(Path("file"), "F32", (*joined, *as_convolution))
    assert f"{prefix}encoder.stages.3.op_list.0.context_module.main.qkv.conv.weight" in file
    fit = fit_tensors(file, module, family.convert)
    assert fit.whole, fit.explain()
