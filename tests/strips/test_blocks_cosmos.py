"""Cosmos runs some frames at a time and gives what diffusers gives, whose norms see one frame."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCosmos

from remote_vae.core import blocks, time_attention
from remote_vae.core.blocks import Blocks, Maps, block_executors
from remote_vae.core.kept import Kept
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.stages import cosmos as stages
from remote_vae.models.vae import DiffusersVAE

from .local_networks import decoded, drops_frames, encoded, forgets_rows, knows_the_first_block_only, ways_of
from .models import shaken
from .test_blocks import ALL, CLOSE, CPU, FEW, apart, given_by


def made(width: int = 16, **config: Any) -> Any:
    torch.manual_seed(0)
    tiny = {
        "encoder_block_out_channels": (width, 2 * width, width, width),
        "decode_block_out_channels": (width, width, 2 * width, width),
        "num_layers": 1,
    }
    return shaken(AutoencoderKLCosmos(**{**tiny, **config}))


@pytest.fixture(scope="module")
def model() -> Any:
    return made()


def ways(module: Any, block_bytes: int) -> tuple[Blocks, ...]:
    """The decoder and the encoder."""
    return ways_of(stages.describe, module, "frames", block_bytes)


def latent_of(frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, frames, height, width)


def pixels_of(frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, frames, 8 * height, 8 * width) * 2 - 1


@pytest.mark.parametrize(("frames", "batch"), [(1, 2), (2, 1), (4, 1), (9, 1)])
def test_equals_diffusers(model: Any, frames: int, batch: int) -> None:
    """Both ways, from blocks of one row to whole maps, one latent frame and several, and batches."""
    z, x = latent_of(frames, batch=batch), pixels_of(8 * frames - 7, batch=batch)
    pixels, parameters = decoded(model, z), encoded(model, x)
    for block_bytes in (FEW, 2**14, ALL) if frames < 9 else (2**14,):
        decoder, encoder = ways(model, block_bytes)
        assert apart(given_by(decoder, z), pixels) < CLOSE
        assert apart(given_by(encoder, x), parameters) < CLOSE


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (9, 1)])
@pytest.mark.parametrize("block_bytes", [FEW, ALL])
def test_smallest_sides(model: Any, size: tuple[int, int], block_bytes: int) -> None:
    z, x = latent_of(2, *size), pixels_of(9, *size)
    decoder, encoder = ways(model, block_bytes)
    assert apart(given_by(decoder, z), decoded(model, z)) < CLOSE
    assert apart(given_by(encoder, x), encoded(model, x)) < CLOSE


@pytest.mark.parametrize("frames", range(9, 18))
def test_frames_beyond_whole_groups(model: Any, frames: int) -> None:
    """Wavelets fill up a last patch that has few frames with those before, and a latent frame comes of it."""
    x = pixels_of(frames, 1, 1)
    assert apart(given_by(ways(model, 2**14)[1], x), encoded(model, x)) < CLOSE


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
    model = made(**config)
    z, x = latent_of(3), pixels_of(9, 4, 6)
    decoder, encoder = ways(model, 2**14)
    assert apart(given_by(decoder, z), decoded(model, z)) < CLOSE
    assert apart(given_by(encoder, x), encoded(model, x)) < CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """A decode is as near to float32 as diffusers is in the same precision, or nearer: at most 0.5 dB less.

    On a CPU diffusers does not encode in 16 bits.
    """
    model, z, x = made(), latent_of(2, 4, 4), pixels_of(9, 4, 4)
    exact, parameters = decoded(model, z), encoded(model, x)
    model.to(dtype)
    decoder, encoder = ways(model, 2**14)
    theirs = (decoded(model, z.to(dtype)).float() - exact).square().mean()
    ours = (given_by(decoder, z.to(dtype)).float() - exact).square().mean()
    assert 10 * torch.log10(ours / theirs) < 0.5
    assert apart(given_by(encoder, x.to(dtype)).float(), parameters) < 0.02


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_prediction(frames: int) -> None:
    """The predicted peak is within 15 % of the live bytes, both ways. The map that waits for attention grows."""
    clips = latent_of(frames, 12, 16), pixels_of(8 * frames - 7, 12, 16)
    for way, batch in zip(ways(made(64), 2**20), clips, strict=True):
        with torch.inference_mode(), LiveBytes() as live:
            way.run(batch.clone(), lambda first, row, block: None, lambda: None)
        assert live.current == 0
        predicted = way.peak_bytes(tuple(batch.shape), torch.float32, 0)
        assert abs(predicted / live.peak - 1) < 0.15, (predicted, live.peak)


def test_memory_of_true_clips() -> None:
    """Of what diffusers holds for 121 frames of 176x320, less than 0.3 is held, both ways."""
    with torch.device("meta"):
        model = AutoencoderKLCosmos().eval().requires_grad_(False)
    vae = DiffusersVAE(model, source="", revision="", family=family_of(MODELS["cosmos"]))
    for found, shape in ((vae.decoders, (1, 16, 16, 22, 40)), (vae.encoders, (1, 3, 121, 176, 320))):
        assert found[0].name == "whole", "the faster one comes first"
        peaks = {way.name: way.peak_bytes(shape, torch.float32, 0) for way in found[::-1] if way.exact}
        assert peaks["frames"] < 0.3 * peaks["whole"], peaks


def test_only_frames(model: Any) -> None:
    """A few rows of all frames at a time would hold all of them, because norms wait for all rows."""
    found = stages.describe(model)
    assert found is not None
    for program in found:
        assert {way.name for way in block_executors(program, lambda told=program: told, CPU, Kept())} == {"frames"}


def test_other_parts_run_by_their_own_code() -> None:
    assert stages.describe(made(patch_type="rearrange")) is None
    model = made()
    model.decoder.mid_block.attentions[0].num_attention_heads = 2
    assert stages.describe(model) is None


# --- faults that the comparison must see ---


def attends_to_the_last_frame_only(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = time_attention.attend_in_time
    monkeypatch.setattr(blocks, "attend_in_time", lambda parts, *rest: [honest([part], *rest) for part in parts])


def forgets_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Maps, "attend", lambda self, attention, run: None)


def repeats_the_last_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = stages._mirrored
    monkeypatch.setattr(stages, "_mirrored", lambda count, patch: sorted(honest(count, patch)))


PLANTS = [
    drops_frames,
    forgets_rows,
    knows_the_first_block_only,
    attends_to_the_last_frame_only,
    forgets_attention,
]


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_errors(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    model, z = made(), latent_of(3)
    plant(monkeypatch)
    assert apart(given_by(ways(model, FEW)[0], z), decoded(model, z)) > 100 * CLOSE


@pytest.mark.parametrize("plant", [*PLANTS, repeats_the_last_frame])
def test_planted_errors_of_the_encoder(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = made(), pixels_of(15)
    plant(monkeypatch)
    assert apart(given_by(ways(model, FEW)[1], x), encoded(model, x)) > 10 * CLOSE
