"""Runs for little memory, which hold no kernels and keep rows as they came, give what each model's own code gives."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan

from remote_vae.core.blocks import Blocks
from remote_vae.core.live_bytes import LiveBytes

from .every_family import NAMES, apart, given_to, own, served, through
from .models import shaken
from .test_blocks import CLOSE, latent_of, pixels_of
from .test_blocks import ways as wan_ways

FEW = 1


def lean_ways(name: str, block_bytes: int, *, decoding: bool) -> tuple[list[Blocks], torch.Tensor, torch.Tensor]:
    """The ways, what they are given, and what they should give."""
    vae = served(name)
    given = given_to(vae, name, decoding=decoding, height=4, width=3)
    ways = [way for way in (vae.decoders if decoding else vae.encoders) if isinstance(way, Blocks) and way.lean]
    return [replace(way, block_bytes=block_bytes) for way in ways], given, own(vae, given, decoding=decoding)


@pytest.mark.parametrize("decoding", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_equals_its_own_code(name: str, decoding: bool) -> None:
    """Both ways, in every order, one row at a time."""
    ways, given, expected = lean_ways(name, FEW, decoding=decoding)
    for way in ways:
        assert apart(through(way, given, expected), expected) < CLOSE, way.name


def test_prediction() -> None:
    """The predicted peak is within 15 % of the live bytes, both ways."""
    torch.manual_seed(0)
    model = shaken(AutoencoderKLWan(base_dim=32, num_res_blocks=1, dim_mult=[1, 2, 2, 2]))
    for way, batch in zip(
        wan_ways(model, "rows", 2**17), (latent_of(model, 3, 12, 20), pixels_of(model, 3, 12, 20)), strict=True
    ):
        lean = replace(way, lean=True)
        with torch.inference_mode(), LiveBytes() as live:
            lean.run(batch.clone(), lambda first, row, block: None, lambda: None)
        predicted = lean.peak_bytes(tuple(batch.shape), torch.float32, 0)
        assert abs(predicted / live.peak - 1) < 0.15, (predicted, live.peak)
