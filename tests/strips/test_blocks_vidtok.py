"""VidTok runs block by block and gives what diffusers gives; its decoder mixes frames with later ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderVidTok

from remote_vae.core.blocks import Blocks
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.families import vidtok as family
from remote_vae.models.stages import vidtok as stages
from remote_vae.models.vae import DiffusersVAE

from .local_networks import drops_frames, forgets_rows, ways_of
from .models import shaken
from .test_blocks import ALL, CLOSE, FEW, ORDERS, apart, given_by


def made(ch: int = 8, **config: Any) -> Any:
    torch.manual_seed(0)
    return shaken(AutoencoderVidTok(**{"ch": ch, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 1, **config}))


@pytest.fixture(scope="module")
def model() -> Any:
    return made()


def ways(module: Any, order: str, block_bytes: int) -> tuple[Blocks, ...]:
    """The decoder, which runs all frames together in any order, and the encoder."""
    return ways_of(stages.describe, module, order, block_bytes)


def decoded(module: Any, z: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return family.decode(module, z)


def encoded(module: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return family.encode(module, x)


def latent_of(frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, frames, height, width)


def pixels_of(frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, 4 * frames - 3, 8 * height, 8 * width) * 2 - 1


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("frames", "batch"), [(1, 2), (2, 1), (4, 1), (9, 1)])
def test_equals_diffusers(model: Any, frames: int, batch: int, order: str) -> None:
    """Both ways, from blocks of one row to whole maps, one latent frame and several, and batches."""
    z, x = latent_of(frames, batch=batch), pixels_of(frames, batch=batch)
    pixels, moments = decoded(model, z), encoded(model, x)
    for block_bytes in (FEW, 2**14, ALL) if frames < 9 else (2**14,):
        decoder, encoder = ways(model, order, block_bytes)
        assert apart(given_by(decoder, z), pixels) < CLOSE
        assert apart(given_by(encoder, x), moments) < CLOSE


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (9, 1)])
def test_smallest_sides(model: Any, size: tuple[int, int]) -> None:
    z, x = latent_of(2, *size), pixels_of(2, *size)
    for order in ORDERS:
        decoder, encoder = ways(model, order, FEW)
        assert apart(given_by(decoder, z), decoded(model, z)) < CLOSE
        assert apart(given_by(encoder, x), encoded(model, x)) < CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """As near to float32 as diffusers is in the same precision, or nearer: at most 0.5 dB less."""
    model, z = made(), latent_of(2, 4, 4)
    exact = decoded(model, z)
    model.to(dtype)
    theirs = (decoded(model, z.to(dtype)).float() - exact).square().mean()
    ours = (given_by(ways(model, "rows", 2**14)[0], z.to(dtype)).float() - exact).square().mean()
    assert 10 * torch.log10(ours / theirs) < 0.5


@pytest.mark.parametrize("order", ORDERS)
def test_prediction(order: str) -> None:
    """The predicted peak is within 15 % of the live bytes, both ways."""
    size = (5, 4, 6) if order == "frames" else (3, 8, 12)
    for way, batch in zip(ways(made(32), order, 2**20), (latent_of(*size), pixels_of(*size)), strict=True):
        with torch.inference_mode(), LiveBytes() as live:
            way.run(batch.clone(), lambda first, row, block: None, lambda: None)
        assert live.current == 0
        predicted = way.peak_bytes(tuple(batch.shape), torch.float32, 0)
        assert abs(predicted / live.peak - 1) < 0.15, (predicted, live.peak)


def test_memory_of_true_clips() -> None:
    """Of what diffusers holds for 17 frames of 192x192, less than a fifth is held, both ways."""
    with torch.device("meta"):
        model = AutoencoderVidTok().eval().requires_grad_(False)
    vae = DiffusersVAE(model, source="", revision="", family=family_of(MODELS["vidtok"]))
    assert vae.info.plans == ("whole", "rows", "frames")
    for found, shape in ((vae.decoders, (1, 4, 5, 24, 24)), (vae.encoders, (1, 3, 17, 192, 192))):
        whole, rows = (next(way for way in found if way.name == name) for name in ("whole", "rows"))
        peaks = whole.peak_bytes(shape, torch.float32, 0), rows.peak_bytes(shape, torch.float32, 0)
        assert peaks[1] < 0.2 * peaks[0], peaks


def test_other_kinds_run_by_their_own_code() -> None:
    """Quantised latents decode by blocks; they are not encoded so. A model that is not causal has no stages."""
    found = stages.describe(made(regularizer="fsq", double_z=False, z_channels=5, codebook_size=8**5))
    assert found is not None
    assert found[1] is None
    assert stages.describe(made(is_causal=False)) is None


# --- faults that the comparison must see ---


def repeats_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(rows: torch.Tensor, new: bool) -> torch.Tensor:
        return torch.cat([rows[:1], rows[1:].repeat_interleave(2, 0)])

    monkeypatch.setattr(stages, "_interpolated", twice)


@pytest.mark.parametrize(("plant", "direction"), [(repeats_frames, 0), (forgets_rows, 0), (drops_frames, 1)])
def test_planted_errors(
    plant: Callable[[pytest.MonkeyPatch], None], direction: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made()
    batch = (latent_of(3), pixels_of(3))[direction]
    expected = (decoded, encoded)[direction](model, batch)
    plant(monkeypatch)
    assert apart(given_by(ways(model, "frames", FEW)[direction], batch), expected) > 100 * CLOSE
