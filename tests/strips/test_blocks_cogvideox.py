"""CogVideoX runs some frames at a time, row by row between its norms, and gives what diffusers gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from remote_vae.core import stream_whole
from remote_vae.core.blocks import Blocks, block_executors
from remote_vae.core.kept import Kept
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.stages import cogvideox as stages
from remote_vae.models.vae import DiffusersVAE

from .local_networks import decoded, drops_frames, encoded, forgets_rows, knows_the_first_block_only, ways_of
from .models import shaken
from .test_blocks import ALL, CLOSE, CPU, FEW, apart, given_by

FRAMES = {1: 1, 2: 8, 3: 9, 4: 16, 5: 17, 7: 25, 9: 33}  # latent frames, and frames to encode


def made(**config: Any) -> Any:
    torch.manual_seed(0)
    tiny = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2}
    return shaken(AutoencoderKLCogVideoX(**{**tiny, **config}))


@pytest.fixture(scope="module")
def model() -> Any:
    return made()


def ways(module: Any, block_bytes: int) -> tuple[Blocks, ...]:
    """The decoder and the encoder."""
    return ways_of(stages.describe, module, "frames", block_bytes)


def latent_of(frames: int, height: int = 3, width: int = 5, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, frames, height, width)


def pixels_of(frames: int, height: int = 3, width: int = 5, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, frames, 8 * height, 8 * width) * 2 - 1


@pytest.mark.parametrize(("frames", "batch"), [(1, 2), (2, 1), (3, 2), (4, 1), (5, 1), (9, 1)])
def test_equals_diffusers(model: Any, frames: int, batch: int) -> None:
    """Both ways, from blocks of one row to whole maps, for odd and even numbers of frames, and batches."""
    z, x = latent_of(frames, batch=batch), pixels_of(FRAMES[frames], batch=batch)
    pixels, parameters = decoded(model, z), encoded(model, x)
    for block_bytes in (FEW, 2**14, ALL) if frames < 9 else (2**14,):
        decoder, encoder = ways(model, block_bytes)
        assert apart(given_by(decoder, z), pixels) < CLOSE
        assert apart(given_by(encoder, x), parameters) < CLOSE


@pytest.mark.parametrize("frames", [2, 3, 5, 7, 10, 13])
def test_frames_beyond_whole_groups(model: Any, frames: int) -> None:
    """They are encoded with those of the first group."""
    x = pixels_of(frames, 2, 1)
    assert apart(given_by(ways(model, 2**14)[1], x), encoded(model, x)) < CLOSE


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (9, 1)])
@pytest.mark.parametrize("block_bytes", [FEW, ALL])
def test_smallest_sides(model: Any, size: tuple[int, int], block_bytes: int) -> None:
    z = latent_of(3, *size)
    assert apart(given_by(ways(model, block_bytes)[0], z), decoded(model, z)) < CLOSE


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


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 9])
def test_prediction(frames: int) -> None:
    """The predicted peak is within 15 % of the live bytes, both ways, and does not grow with the length of a clip."""
    model = made(block_out_channels=(16, 32, 32, 64))
    for way, batch in zip(ways(model, 2**20), (latent_of(frames, 6, 4), pixels_of(FRAMES[frames], 6, 4)), strict=True):
        with torch.inference_mode(), LiveBytes() as live:
            way.run(batch.clone(), lambda first, row, block: None, lambda: None)
        assert live.current == 0
        predicted = way.peak_bytes(tuple(batch.shape), torch.float32, 0)
        assert abs(predicted / live.peak - 1) < 0.15, (predicted, live.peak)


def test_memory_of_true_clips() -> None:
    """Of what diffusers holds for a clip, a third is held to decode, and less than three fifths to encode."""
    family, config = family_of(MODELS["cogvideox"]), MODELS["cogvideox"].config
    with torch.device("meta"):
        model = family.load_class()(**(config or {})).eval().requires_grad_(False)
    vae = DiffusersVAE(model, source="", revision="", family=family)
    for ways, shape, share in ((vae.decoders, (1, 16, 5, 30, 45), 0.33), (vae.encoders, (1, 3, 17, 240, 360), 0.6)):
        peaks = {way.name: way.peak_bytes(shape, torch.float32, 0) for way in ways[::-1]}
        assert peaks["frames"] < share * peaks["pieces"], peaks


def test_plans(model: Any) -> None:
    """A few rows of all frames at a time would hold all of them, and the model's own code stays a plan."""
    found = stages.describe(model)
    assert found is not None
    assert {way.name for way in block_executors(found[0], lambda: found[0], CPU, Kept())} == {"frames"}
    vae = DiffusersVAE(model, source="", revision="", family=family_of(MODELS["cogvideox"]))
    assert vae.info.plans == ("frames", "pieces", "whole")


def test_other_architectures_run_by_their_own_code() -> None:
    assert stages.describe(made(use_quant_conv=True)) is None


# --- faults that the comparison must see ---


def sees_each_frame_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_whole.NormedFrames, "_apart", lambda self, rows: torch.split(rows, 1))


def scales_by_the_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = stream_whole._Scales.scale
    monkeypatch.setattr(stream_whole._Scales, "scale", lambda self, rows, first: honest(self, rows, 0))


@pytest.mark.parametrize(
    "plant",
    [drops_frames, forgets_rows, knows_the_first_block_only, sees_each_frame_alone, scales_by_the_first_rows],
)
def test_planted_errors(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    model, z = made(), latent_of(5)
    plant(monkeypatch)
    assert apart(given_by(ways(model, FEW)[0], z), decoded(model, z)) > 100 * CLOSE
