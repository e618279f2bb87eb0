"""EasyAnimate runs a frame or some frames at a time, row by row between its norms, and gives what diffusers gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLMagvit

from remote_vae.core import stream_frames, stream_whole
from remote_vae.core.blocks import Blocks
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.stages import easyanimate as stages
from remote_vae.models.vae import DiffusersVAE

from .local_networks import decoded, drops_frames, encoded, forgets_rows, knows_the_first_block_only, ways_of
from .models import shaken
from .test_blocks import ALL, CLOSE, FEW, apart, given_by
from .test_blocks_cogvideox import latent_of


def made(**config: Any) -> Any:
    torch.manual_seed(0)
    tiny = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2}
    return shaken(AutoencoderKLMagvit(**{**tiny, **config}))


@pytest.fixture(scope="module")
def model() -> Any:
    return made()


def ways(module: Any, block_bytes: int) -> tuple[Blocks, ...]:
    """The decoder and the encoder."""
    return ways_of(stages.describe, module, "frames", block_bytes)


def pixels_of(frames: int, height: int = 3, width: int = 5, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, 4 * frames - 3, 8 * height, 8 * width) * 2 - 1


@pytest.mark.parametrize(("frames", "batch"), [(1, 2), (2, 1), (3, 2), (9, 1)])
def test_equals_diffusers(model: Any, frames: int, batch: int) -> None:
    """Both ways, from blocks of one row to whole maps, and batches."""
    z, x = latent_of(frames, batch=batch), pixels_of(frames, batch=batch)
    pixels, parameters = decoded(model, z), encoded(model, x)
    for block_bytes in (FEW, 2**14, ALL) if frames < 9 else (2**14,):
        decoder, encoder = ways(model, block_bytes)
        assert apart(given_by(decoder, z), pixels) < CLOSE
        assert apart(given_by(encoder, x), parameters) < CLOSE


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (9, 1)])
@pytest.mark.parametrize("block_bytes", [FEW, ALL])
def test_smallest_sides(model: Any, size: tuple[int, int], block_bytes: int) -> None:
    z, x = latent_of(2, *size), pixels_of(2, *size)
    decoder, encoder = ways(model, block_bytes)
    assert apart(given_by(decoder, z), decoded(model, z)) < CLOSE
    assert apart(given_by(encoder, x), encoded(model, x)) < CLOSE


def test_norms_of_frames_that_run_together() -> None:
    """Norms that are not of single frames see those that run together. Frames that are doubled would then be mixed."""
    flat = ("SpatialDownBlock3D",) * 3, ("SpatialUpBlock3D",) * 3
    model = made(
        block_out_channels=(8, 8, 8), down_block_types=flat[0], up_block_types=flat[1], spatial_group_norm=False
    )
    z, x = latent_of(3), pixels_of(3)
    decoder, encoder = ways(model, 2**14)
    assert apart(given_by(decoder, z), decoded(model, z)) < CLOSE
    assert apart(given_by(encoder, x), encoded(model, x)) < CLOSE
    assert stages.describe(made(spatial_group_norm=False)) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """As near to float32 as diffusers is in the same precision, or nearer: at most 0.5 dB less."""
    model, z = made(), latent_of(3, 4, 4)
    exact = decoded(model, z)
    model.to(dtype)
    theirs = decoded(model, z.to(dtype)).float()
    ours = given_by(ways(model, 2**14)[0], z.to(dtype)).float()

    def noise(found: torch.Tensor) -> torch.Tensor:
        return (found - exact).square().mean()

    assert 10 * torch.log10(noise(ours) / noise(theirs)) < 0.5


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_prediction(frames: int) -> None:
    """The predicted peak is within 15 % of the live bytes, both ways, and does not grow with the length of a clip."""
    model = made(block_out_channels=(16, 32, 32, 64))
    for way, batch in zip(ways(model, 2**20), (latent_of(frames, 6, 4), pixels_of(frames, 6, 4)), strict=True):
        with torch.inference_mode(), LiveBytes() as live:
            way.run(batch.clone(), lambda first, row, block: None, lambda: None)
        assert live.current == 0
        predicted = way.peak_bytes(tuple(batch.shape), torch.float32, 0)
        assert abs(predicted / live.peak - 1) < 0.15, (predicted, live.peak)


def test_memory_of_true_clips() -> None:
    """Of what diffusers holds for a clip, less than two thirds is held."""
    family, config = family_of(MODELS["easyanimate"]), MODELS["easyanimate"].config
    with torch.device("meta"):
        model = family.load_class()(**(config or {})).eval().requires_grad_(False)
    vae = DiffusersVAE(model, source="", revision="", family=family)
    assert vae.info.plans == ("frames", "pieces", "whole")
    for found, shape in ((vae.decoders, (1, 16, 3, 48, 84)), (vae.encoders, (1, 3, 9, 384, 672))):
        peaks = {way.name: way.peak_bytes(shape, torch.float32, 0) for way in found[::-1]}
        assert peaks["frames"] < 0.65 * peaks["pieces"], peaks


# --- faults that the comparison must see ---


def forgets_the_frame_before_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = stream_frames.ThreeOfFrames._of
    monkeypatch.setattr(stream_frames.ThreeOfFrames, "_of", lambda self, taps: honest(self, [taps[1], *taps[1:]]))


def sees_frames_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_whole.NormedFrames, "_apart", lambda self, rows: (rows,))


@pytest.mark.parametrize(
    "plant",
    [drops_frames, forgets_rows, knows_the_first_block_only, sees_frames_together, forgets_the_frame_before_a_pair],
)
def test_planted_errors(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = made(), pixels_of(3)
    plant(monkeypatch)
    assert apart(given_by(ways(model, FEW)[1], x), encoded(model, x)) > 100 * CLOSE
