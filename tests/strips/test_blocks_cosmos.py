"""What only Cosmos has: wavelets, attention at several sizes, and patches."""

from typing import Any

import pytest
import torch

from remote_vae.models.stages import cosmos as stages

from .families import COSMOS
from .local_networks import decoded, encoded
from .test_blocks import CLOSE, FEW, apart, given_by


@pytest.fixture(scope="module")
def model() -> Any:
    return COSMOS.made()


@pytest.mark.parametrize("frames", range(9, 18))
def test_frames_beyond_whole_groups(model: Any, frames: int) -> None:
    """Wavelets fill up a last patch that has few frames with those before, and a latent frame comes of it."""
    x = pixels_of(frames, 1, 1)
    assert apart(given_by(COSMOS.ways(model, 2**14)[1], x), encoded(model, x)) < CLOSE


def pixels_of(frames: int, height: int = 3, width: int = 2) -> torch.Tensor:
    return torch.rand(1, 3, frames, 8 * height, 8 * width) * 2 - 1


@pytest.mark.parametrize(
    "config",
    [
        {"attention_resolutions": (128, 64)},
        {"spatial_compression_ratio": 16},
        {"patch_size": 2, "temporal_compression_ratio": 4},
        {"patch_size": 2, "temporal_compression_ratio": 2},
    ],
)
def test_other_architectures(config: dict[str, Any]) -> None:
    """Attention at other sizes than the latent's, other patches, and levels that change either pixels or frames."""
    model = COSMOS.made(**config)
    z, x = COSMOS.latent(3), pixels_of(9, 4, 6)
    decoder, encoder = COSMOS.ways(model, 2**14)
    assert apart(given_by(decoder, z), decoded(model, z)) < CLOSE
    assert apart(given_by(encoder, x), encoded(model, x)) < CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_encoder_of_sixteen_bits(dtype: torch.dtype) -> None:
    """It is near to float32; on a CPU diffusers does not encode in 16 bits."""
    model, x = COSMOS.made(), pixels_of(9, 4, 4)
    exact = encoded(model, x)
    model.to(dtype)
    assert apart(given_by(COSMOS.ways(model, 2**14)[1], x.to(dtype)).float(), exact) < 0.02


def test_other_parts_run_by_their_own_code() -> None:
    assert stages.describe(COSMOS.made(patch_type="rearrange")) is None
    model = COSMOS.made()
    model.decoder.mid_block.attentions[0].num_attention_heads = 2
    assert stages.describe(model) is None


def test_a_repeated_last_frame_is_seen(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees a last patch that is filled up with its last frame."""
    x, honest = pixels_of(15), stages._mirrored
    expected = encoded(model, x)
    monkeypatch.setattr(stages, "_mirrored", lambda count, patch: sorted(honest(count, patch)))
    assert apart(given_by(COSMOS.ways(model, FEW)[1], x), expected) > 10 * CLOSE
