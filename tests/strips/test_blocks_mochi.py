"""What only Mochi has: attention in many places, and frames that it drops."""

import pytest
import torch

from remote_vae.models.stages import mochi as stages

from .families import MOCHI
from .local_networks import decoded, encoded, lost_decibels
from .test_blocks import CLOSE, apart, given_by


@pytest.mark.parametrize("everywhere", [True, False])
def test_attention_after_the_first_blocks_too(everywhere: bool) -> None:
    """An encoder may attend at the full size, or nowhere."""
    model, x = MOCHI.made(add_attention_block=(everywhere,) * 5), MOCHI.pixels(2)
    assert apart(given_by(MOCHI.ways(model, 2**14)[1], x), encoded(model, x)) < CLOSE


def test_all_frames_of_the_first_latent_frame() -> None:
    model, z = MOCHI.made(), MOCHI.latent(2)
    model.drop_last_temporal_frames = False
    assert apart(given_by(MOCHI.ways(model, 2**14)[0], z), decoded(model, z)) < CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_encoder_of_sixteen_bits(dtype: torch.dtype) -> None:
    """As near to float32 as diffusers is in the same precision, or nearer: at most 0.5 dB less."""
    model, x = MOCHI.made(), MOCHI.pixels(2, 4, 4)
    exact = encoded(model, x)
    model.to(dtype)
    found = given_by(MOCHI.ways(model, 2**14)[1], x.to(dtype))
    assert lost_decibels(found, encoded(model, x.to(dtype)), exact) < 0.5


def test_other_architectures_run_by_their_own_code() -> None:
    model = MOCHI.made()
    model.encoder.block_out.attentions[0].norm_k = None
    assert stages.describe(model) is None
    model = MOCHI.made()
    model.use_framewise_decoding = True
    assert stages.describe(model) is None
