"""Files with the names of the original code of Sana's autoencoder and of those of its class."""

import re
from typing import Any

import pytest
import torch

from numerics.cases.dc_ae import dc_ae, sana
from remote_vae.models.families.dc_ae import from_original_names

# What the converted names were before, the longer ones first.
ORIGINAL = (
    (r"\.attn\.to_qkv_multiscale\.0\.proj_in\.", ".context_module.main.aggreg.0.0."),
    (r"\.attn\.to_qkv_multiscale\.0\.proj_out\.", ".context_module.main.aggreg.0.1."),
    (r"\.attn\.to_out\.", ".context_module.main.proj.conv."),
    (r"\.attn\.norm_out\.", ".context_module.main.proj.norm."),
    (r"\.conv_out\.conv_(inverted|depth|point)\.", r".local_module.main.\1_conv.conv."),
    (r"\.conv_out\.norm\.", ".local_module.main.point_conv.norm."),
    (r"(blocks\.\d+\.\d+)\.conv\.", r"\1.main.conv.conv."),
    (r"(blocks\.\d+\.\d+)\.(conv[12])\.", r"\1.main.\2.conv."),
    (r"(blocks\.\d+\.\d+)\.norm\.", r"\1.main.conv2.norm."),
    (r"(?:down|up)_blocks\.(\d+)\.", r"stages.\1.op_list."),
    (r"^encoder\.conv_out\.", "encoder.project_out.0."),
    (r"^decoder\.norm_out\.", "decoder.project_out.0."),
    (r"^decoder\.conv_out\.", "decoder.project_out.2."),
    (r"^(encoder|decoder)\.conv_in\.", r"\1.project_in."),
)


def with_original_names(module: Any) -> dict[str, torch.Tensor]:
    """Query, key and value are one tensor there, and linear layers are convolutions."""
    weights = dict(module.state_dict())
    found = {}
    for name, tensor in list(weights.items()):
        if ".attn.to_q." in name:
            parts = [weights.pop(name.replace("to_q.", f"to_{part}.")) for part in "qkv"]
            found[name.replace("attn.to_q.", "context_module.main.qkv.conv.")] = torch.cat(parts)[:, :, None, None]
        elif name in weights and not re.search(r"attn\.to_[kv]\.", name):
            found[name] = tensor[:, :, None, None] if ".attn.to_out." in name else tensor
    for pattern, original in ORIGINAL:
        found = {re.sub(pattern, original, name): tensor for name, tensor in found.items()}
    outer = re.compile(r"(project_in|encoder\.project_out\.0|decoder\.project_out\.2)\.((?:conv\.)?)(weight|bias)$")
    return {outer.sub(r"\1.conv.\2\3", name): tensor for name, tensor in found.items()}


@pytest.mark.parametrize("make", [sana, dc_ae])
def test_original_names(make: Any) -> None:
    """A file with the original names gives the module's own tensors, and one with the present names is left alone."""
    module = make()
    weights = module.state_dict()
    original = with_original_names(module)
    assert not set(original) & {name for name in weights if "blocks" in name}
    converted = from_original_names(original, module)
    assert set(converted) == set(weights)
    assert all(torch.equal(converted[name], weights[name]) for name in weights)
    assert from_original_names(dict(weights), module) == weights
