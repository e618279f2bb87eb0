"""Mochi runs some frames at a time and gives what diffusers gives, whose norms see one frame."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLMochi

from remote_vae.core import blocks, stream_layer, time_attention
from remote_vae.core.blocks import Blocks, Maps, block_executors
from remote_vae.core.kept import Kept
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.stages import mochi as stages
from remote_vae.models.vae import DiffusersVAE

from .local_networks import decoded, drops_frames, encoded, knows_the_first_block_only, ways_of
from .models import shaken
from .test_blocks import ALL, CLOSE, CPU, FEW, apart, given_by


def made(widths: tuple[int, ...] = (32, 32, 64, 64), **config: Any) -> Any:
    torch.manual_seed(0)
    tiny = {
        "encoder_block_out_channels": (32, 64, 64, 64),  # groups of one channel and one cell have no variance
        "decoder_block_out_channels": widths,
        "layers_per_block": (1,) * 5,
    }
    return shaken(AutoencoderKLMochi(**{**tiny, **config}))


@pytest.fixture(scope="module")
def model() -> Any:
    return made()


def ways(module: Any, block_bytes: int) -> tuple[Blocks, ...]:
    """The decoder and the encoder."""
    return ways_of(stages.describe, module, "frames", block_bytes)


def way(module: Any, block_bytes: int) -> Blocks:
    return ways(module, block_bytes)[0]


def latent_of(frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 12, frames, height, width)


def pixels_of(frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, 6 * frames - 5, 8 * height, 8 * width) * 2 - 1


@pytest.mark.parametrize("block_bytes", [FEW, 2**14, ALL])
@pytest.mark.parametrize(("frames", "batch"), [(1, 2), (2, 1), (4, 1)])
def test_equals_diffusers(model: Any, frames: int, batch: int, block_bytes: int) -> None:
    """From blocks of one row to whole frames, for odd sizes, one latent frame and several, and batches."""
    z = latent_of(frames, batch=batch)
    assert apart(given_by(way(model, block_bytes), z), decoded(model, z)) < CLOSE


@pytest.mark.parametrize("block_bytes", [FEW, 2**14, ALL])
@pytest.mark.parametrize(("frames", "batch"), [(1, 2), (2, 1), (3, 2)])
def test_encoder_equals_diffusers(model: Any, frames: int, batch: int, block_bytes: int) -> None:
    """One frame and several groups, of which each attends to those before it."""
    x = pixels_of(frames, batch=batch)
    assert apart(given_by(ways(model, block_bytes)[1], x), encoded(model, x)) < CLOSE


def test_attention_after_the_first_blocks_too(model: Any) -> None:
    """An encoder may attend at the full size, or nowhere."""
    x = pixels_of(2)
    for everywhere in (True, False):
        other = made(add_attention_block=(everywhere,) * 5)
        assert apart(given_by(ways(other, 2**14)[1], x), encoded(other, x)) < CLOSE


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (9, 1)])
@pytest.mark.parametrize("block_bytes", [FEW, ALL])
def test_smallest_sides(model: Any, size: tuple[int, int], block_bytes: int) -> None:
    z = latent_of(2, *size)
    assert apart(given_by(way(model, block_bytes), z), decoded(model, z)) < CLOSE


def test_all_frames_of_the_first_latent_frame() -> None:
    model, z = made(), latent_of(2)
    model.drop_last_temporal_frames = False
    assert apart(given_by(way(model, 2**14), z), decoded(model, z)) < CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """As near to float32 as diffusers is in the same precision, or nearer: at most 0.5 dB less."""
    model, z, x = made(), latent_of(2, 4, 4), pixels_of(2, 4, 4)
    exact = decoded(model, z), encoded(model, x)
    model.to(dtype)
    for given, found, expected, run in zip((z, x), exact, (decoded, encoded), ways(model, 2**14), strict=True):
        theirs = (expected(model, given.to(dtype)).float() - found).square().mean()
        ours = (given_by(run, given.to(dtype)).float() - found).square().mean()
        assert 10 * torch.log10(ours / theirs) < 0.5


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_prediction(frames: int) -> None:
    """The predicted peak is within 15 % of the live bytes, and does not grow with the length of a clip."""
    decoder = way(made((32, 64, 64, 128)), 2**20)
    z = latent_of(frames, 6, 4)
    with torch.inference_mode(), LiveBytes() as live:
        decoder.run(z.clone(), lambda first, row, block: None, lambda: None)
    assert live.current == 0
    predicted = decoder.peak_bytes(tuple(z.shape), torch.float32, 0)
    assert abs(predicted / live.peak - 1) < 0.15, (predicted, live.peak)


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_prediction_of_the_encoder(frames: int) -> None:
    """One map of all frames is stored, so the peak grows with the length of a clip; it is within 15 % too."""
    encoder, x = ways(made(encoder_block_out_channels=(64,) * 4), 2**20)[1], pixels_of(frames, 9, 5)
    with torch.inference_mode(), LiveBytes() as live:
        encoder.run(x.clone(), lambda first, row, block: None, lambda: None)
    assert live.current == 0
    predicted = encoder.peak_bytes(tuple(x.shape), torch.float32, 0)
    assert abs(predicted / live.peak - 1) < 0.15, (predicted, live.peak)


def test_memory_of_true_clips() -> None:
    """Of what diffusers holds for 61 frames of 240x432, less than a fifth is held, both ways."""
    with torch.device("meta"):
        model = AutoencoderKLMochi().eval().requires_grad_(False)
    vae = DiffusersVAE(model, source="", revision="", family=family_of(MODELS["mochi"]))
    for found, shape in ((vae.decoders, (1, 12, 11, 30, 54)), (vae.encoders, (1, 3, 61, 240, 432))):
        assert found[0].name == "frames"
        peaks = {way.name: way.peak_bytes(shape, torch.float32, 0) for way in found if way.exact}
        assert peaks["frames"] < 0.2 * peaks["whole"]


def test_only_frames(model: Any) -> None:
    """A few rows of all frames at a time would hold all of them, because norms wait for all rows."""
    found = stages.describe(model)
    assert found is not None
    for program in found:
        assert {way.name for way in block_executors(program, lambda told=program: told, CPU, Kept())} == {"frames"}


def test_other_architectures_run_by_their_own_code() -> None:
    model = made()
    model.encoder.block_out.attentions[0].norm_k = None
    assert stages.describe(model) is None
    model = made()
    model.use_framewise_decoding = True
    assert stages.describe(model) is None


# --- faults that the comparison must see ---


def reads_zeros_beyond_the_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_layer, "_repeat", lambda *window, **borders: None)


@pytest.mark.parametrize("plant", [drops_frames, reads_zeros_beyond_the_borders, knows_the_first_block_only])
def test_planted_errors(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    model, z = made(), latent_of(3)
    plant(monkeypatch)
    assert apart(given_by(way(model, FEW), z), decoded(model, z)) > 100 * CLOSE


def attends_to_the_last_group_only(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = time_attention.attend_in_time
    monkeypatch.setattr(blocks, "attend_in_time", lambda parts, *rest: [honest([part], *rest) for part in parts])


def normalises_by_the_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = time_attention._attended
    monkeypatch.setattr(
        time_attention,
        "_attended",
        lambda given, stage, scale, shift: honest(given, stage, scale[:1].expand_as(scale), shift[:1].expand_as(shift)),
    )


def forgets_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Maps, "attend", lambda self, attention, run: None)


@pytest.mark.parametrize(
    "plant",
    [
        drops_frames,
        reads_zeros_beyond_the_borders,
        knows_the_first_block_only,
        attends_to_the_last_group_only,
        normalises_by_the_first_frame,
        forgets_attention,
    ],
)
def test_planted_errors_of_the_encoder(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = made(), pixels_of(3)
    plant(monkeypatch)
    assert apart(given_by(ways(model, FEW)[1], x), encoded(model, x)) > 100 * CLOSE
