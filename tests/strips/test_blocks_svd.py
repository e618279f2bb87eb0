"""Stable Video Diffusion is decoded a few rows of all frames at a time and gives what diffusers gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder

from remote_vae.core import blocks, stream_layer, stream_whole
from remote_vae.core.blocks import Blocks, block_executors
from remote_vae.core.kept import Kept
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.families.svd import decode
from remote_vae.models.stages import svd as stages
from remote_vae.models.stages.local_parts import each_of
from remote_vae.models.vae import DiffusersVAE

from .local_networks import forgets_rows, knows_the_first_block_only, lost_decibels, off, ways_of
from .models import shaken
from .test_blocks import ALL, CLOSE, CPU, FEW, apart, given_by


def made(widths: tuple[int, ...] = (32, 64, 64), layers: int = 2) -> Any:
    torch.manual_seed(0)
    kinds = ("DownEncoderBlock2D",) * len(widths)
    return shaken(
        AutoencoderKLTemporalDecoder(block_out_channels=widths, down_block_types=kinds, layers_per_block=layers)
    )


@pytest.fixture(scope="module")
def model() -> Any:
    return made()


def way(module: Any, block_bytes: int) -> Blocks:
    """The decoder; the encoder takes frame by frame in its own code."""
    return ways_of(lambda model: (stages.describe(model) or ())[:1], module, "rows", block_bytes)[0]


def latent_of(frames: int, height: int = 4, width: int = 3, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, frames, height, width)


def decoded(module: Any, z: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return decode(module, z)


@pytest.mark.parametrize(("frames", "batch", "size"), [(1, 2, (3, 2)), (3, 2, (5, 3)), (9, 1, (4, 3))])
def test_equals_diffusers(model: Any, frames: int, batch: int, size: tuple[int, int]) -> None:
    """From blocks of one row to whole maps, one frame and several, for odd sizes and batches."""
    z = latent_of(frames, *size, batch=batch)
    expected = decoded(model, z)
    for block_bytes in (FEW, 2**14, ALL):
        assert apart(given_by(way(model, block_bytes), z), expected) < CLOSE


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (9, 1)])
def test_smallest_sides(model: Any, size: tuple[int, int]) -> None:
    z = latent_of(2, *size)
    expected = decoded(model, z)
    for block_bytes in (FEW, ALL):
        assert apart(given_by(way(model, block_bytes), z), expected) < CLOSE


@pytest.mark.parametrize("layers", [1, 3])
def test_blocks_that_the_class_leaves_out(layers: int) -> None:
    """Its middle runs no attention if it has one block, and no third block."""
    model, z = made((32, 64), layers), latent_of(2)
    assert apart(given_by(way(model, 2**14), z), decoded(model, z)) < CLOSE


def test_half_precision() -> None:
    """As near to float32 as diffusers is in the same precision, or nearer: at most 0.5 dB less."""
    model, z = made(), latent_of(3)
    exact = decoded(model, z)
    model.half()
    found = given_by(way(model, 2**14), z.half())
    assert lost_decibels(found, decoded(model, z.half()), exact) < 0.5


@pytest.mark.parametrize("frames", [3, 9])
def test_prediction(frames: int) -> None:
    """The predicted peak is within 15 % of the live bytes."""
    decoder, z = way(made((32, 64, 128)), 2**19), latent_of(frames, 20, 14)
    assert abs(off(decoder, z)) < 0.15


def test_memory_of_true_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what diffusers holds for 14 frames of 320x512, less than 30 % is held; the model's own code comes first.

    What two low clips say of a tall one is what a rehearsal of it says.
    """
    family, config = family_of(MODELS["svd"]), MODELS["svd"].config
    with torch.device("meta"):
        model = family.load_class()(**(config or {})).eval().requires_grad_(False)
    vae = DiffusersVAE(model, source="", revision="", family=family)
    assert vae.info.plans == ("whole", "rows", "pieces")
    shape = (1, 4, 14, 40, 64)
    whole, rehearsed = (vae.decoders[index].peak_bytes(shape, torch.float32, 0) for index in (0, -1))
    assert rehearsed < 0.3 * whole
    monkeypatch.setattr(blocks, "MANY", 0)
    assert abs(vae.decoders[-1]._predict(shape, torch.float32) / rehearsed - 1) < 0.02


def test_only_rows(model: Any) -> None:
    """Norms see all frames, so few frames at a time cannot run."""
    found = stages.describe(model)
    assert found is not None
    assert {way.name for way in block_executors(found[0], lambda: found[0], CPU, Kept())} == {"rows"}


def test_other_architectures_run_by_their_own_code() -> None:
    model = made()
    model.decoder.up_blocks[0].resnets[0].time_mixer.merge_strategy = "fixed"
    assert stages.describe(model) is None


# --- faults that the comparison must see ---


def sees_each_frame_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_whole.NormedFrames, "_apart", lambda self, rows: torch.split(rows, 1))


def sees_frames_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_whole.NormedFrames, "_apart", lambda self, rows: (rows,))


def attends_without_a_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_whole.Attended, "_normalised", lambda self, frame: frame.clone())


def repeats_the_last_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "Frames", lambda before, after: stream_layer.Frames(before, after, repeats=True))


def adds_all_of_what_is_along_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "each_of", lambda function, channels: each_of(lambda rows: rows, channels))


@pytest.mark.parametrize(
    "plant",
    [
        forgets_rows,
        knows_the_first_block_only,
        sees_each_frame_alone,
        sees_frames_together,
        attends_without_a_norm,
        repeats_the_last_frame,
        adds_all_of_what_is_along_time,
    ],
)
def test_planted_errors(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    model, z = made(), latent_of(3)
    plant(monkeypatch)
    assert apart(given_by(way(model, FEW), z), decoded(model, z)) > 100 * CLOSE
