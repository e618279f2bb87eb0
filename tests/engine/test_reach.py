"""The largest picture that a model's plans decode, as the server says it at its start."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLHunyuanVideo

from remote_vae.engine.reach import SIDES, largest_sides
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.vae import DiffusersVAE

FOUR: Any = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
VIDEO: Any = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}


def served(name: str, module: Any) -> DiffusersVAE:
    return DiffusersVAE(module.eval(), source="", revision="", family=family_of(MODELS[name]))


def fits(vae: DiffusersVAE, plan: str, side: int, free_bytes: int) -> bool:
    shape, output = (1, 4, side // 8, side // 8), 3 * side**2
    ways = [way for way in vae.decoders if way.name == plan]
    return any((way.peak_bytes(shape, torch.float32, output) or 0) <= free_bytes for way in ways)


@pytest.mark.parametrize("free_bytes", [10**7, 10**8, 10**9])
def test_each_plan_reaches_as_far_as_its_prediction(free_bytes: int) -> None:
    """The picture fits by the plan's prediction, and the next size does not."""
    vae = served("sd1", AutoencoderKL(**FOUR, latent_channels=4))
    found = largest_sides(vae, MODELS["sd1"].recipe, free_bytes)
    assert {"whole", "strips"} <= found.keys()
    for plan, side in found.items():
        assert fits(vae, plan, side, free_bytes)
        following = SIDES[SIDES.index(side) + 1 :][:1]
        assert not any(fits(vae, plan, larger, free_bytes) for larger in following)


def test_what_has_no_largest_picture() -> None:
    """A device that does not say what is free, memory that fits nothing, and clips, whose predictions take long."""
    vae = served("sd1", AutoencoderKL(**FOUR, latent_channels=4))
    assert largest_sides(vae, MODELS["sd1"].recipe, None) == largest_sides(vae, MODELS["sd1"].recipe, 1000) == {}
    video = served("hunyuanvideo", AutoencoderKLHunyuanVideo(**VIDEO, latent_channels=16))
    assert largest_sides(video, MODELS["hunyuanvideo"].recipe, 10**12) == {}
