"""What only CogVideoX has: groups of frames that are not whole."""

from typing import Any

import pytest
import torch

from remote_vae.models.stages import cogvideox as stages

from .families import COGVIDEOX
from .local_networks import encoded
from .test_blocks import CLOSE, apart, given_by


@pytest.fixture(scope="module")
def model() -> Any:
    return COGVIDEOX.made()


@pytest.mark.parametrize("frames", [2, 3, 5, 7, 10, 13])
def test_frames_beyond_whole_groups(model: Any, frames: int) -> None:
    """They are encoded with those of the first group."""
    x = torch.rand(1, 3, frames, 16, 8) * 2 - 1
    assert apart(given_by(COGVIDEOX.ways(model, 2**14)[1], x), encoded(model, x)) < CLOSE


def test_other_architectures_run_by_their_own_code() -> None:
    assert stages.describe(COGVIDEOX.made(use_quant_conv=True)) is None
