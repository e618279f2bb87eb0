"""HunyuanVideo 1.5 runs block by block and gives what diffusers gives; frames attend to earlier ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo15

from remote_vae.core import stream_whole
from remote_vae.core.block import Past
from remote_vae.core.blocks import Blocks
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.stages import hunyuan_video_15 as stages
from remote_vae.models.vae import DiffusersVAE

from .local_networks import lost_decibels, off, reads_zeros_beyond_the_borders, ways_of
from .models import shaken
from .test_blocks import ALL, CLOSE, FEW, ORDERS, apart, given_by

WIDTHS = (16, 16, 32, 32, 32)


def made(widths: tuple[int, ...] = WIDTHS, **config: Any) -> Any:
    torch.manual_seed(0)
    return shaken(
        AutoencoderKLHunyuanVideo15(latent_channels=8, block_out_channels=widths, layers_per_block=1, **config)
    )


@pytest.fixture(scope="module")
def model() -> Any:
    return made()


def ways(module: Any, order: str, block_bytes: int) -> tuple[Blocks, ...]:
    """The decoder and the encoder."""
    return ways_of(stages.describe, module, order, block_bytes)


def latent_of(frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 8, frames, height, width)


def pixels_of(frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, 1 + 4 * (frames - 1), 16 * height, 16 * width) * 2 - 1


def decoded(module: Any, batch: torch.Tensor) -> torch.Tensor:
    """One by one, because diffusers' mask does not fit a batch."""
    with torch.inference_mode():
        return torch.cat([module.decode(z).sample for z in batch.split(1)])


def encoded(module: Any, batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat([module.encode(x).latent_dist.parameters for x in batch.split(1)])


@pytest.mark.parametrize(("frames", "batch"), [(1, 2), (2, 1), (3, 1), (4, 2)])
def test_equals_diffusers(model: Any, frames: int, batch: int) -> None:
    """Both ways, from blocks of one row to whole maps, for odd sizes, one frame and several, and batches."""
    z, x = latent_of(frames, batch=batch), pixels_of(frames, batch=batch)
    pixels, parameters = decoded(model, z), encoded(model, x)
    for order in ORDERS:
        for block_bytes in (FEW, 2**14, ALL):
            decoder, encoder = ways(model, order, block_bytes)
            assert apart(given_by(decoder, z), pixels) < CLOSE
            assert apart(given_by(encoder, x), parameters) < CLOSE


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (9, 1)])
@pytest.mark.parametrize("block_bytes", [FEW, ALL])
def test_smallest_sides(model: Any, size: tuple[int, int], block_bytes: int) -> None:
    z = latent_of(2, *size)
    for order in ORDERS:
        assert apart(given_by(ways(model, order, block_bytes)[0], z), decoded(model, z)) < CLOSE


def test_levels_that_keep_their_width() -> None:
    """Shortcuts repeat channels, and take means of them, by other numbers."""
    model = made(downsample_match_channel=False, upsample_match_channel=False)
    z, x = latent_of(2), pixels_of(2)
    decoder, encoder = ways(model, "frames", 2**14)
    assert apart(given_by(decoder, z), decoded(model, z)) < CLOSE
    assert apart(given_by(encoder, x), encoded(model, x)) < CLOSE


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype, frames: int) -> None:
    """As near to float32 as diffusers is in the same precision, or nearer: at most 0.5 dB less."""
    model, z = made(), latent_of(frames, 4, 4)
    exact = decoded(model, z)
    model.to(dtype)
    theirs = decoded(model, z.to(dtype))
    ours = given_by(ways(model, "frames", 2**14)[0], z.to(dtype))
    assert lost_decibels(ours, theirs, exact) < 0.5


@pytest.mark.parametrize("frames", [1, 3, 6])
@pytest.mark.parametrize("order", ORDERS)
def test_prediction(order: str, frames: int) -> None:
    """The predicted peak is within 15 % of the live bytes, both ways, for pictures and clips."""
    model = made((16, 32, 64, 64, 64))
    z, x = latent_of(frames, 6, 4), pixels_of(frames, 6, 4)
    for way, batch in zip(ways(model, order, 2**20), (z, x), strict=True):
        assert abs(off(way, batch)) < 0.15


def test_keys_of_all_frames_are_predicted() -> None:
    """The prediction for a long clip counts what attention keeps of each frame."""
    way = ways(made((4, 4, 16, 64, 256)), "frames", 2**20)[0]
    z = latent_of(30, 2, 2)
    assert abs(off(way, z)) < 0.15


def test_orders_save_memory() -> None:
    """Of what diffusers' decode of a clip holds, `frames` holds less than half and `rows` less than a quarter."""
    with torch.device("meta"):
        model = AutoencoderKLHunyuanVideo15().eval().requires_grad_(False)
    vae = DiffusersVAE(model, source="", revision="", family=family_of(MODELS["hunyuanvideo-1.5"]))
    peaks = {way.name: way.peak_bytes((1, 32, 5, 16, 24), torch.float32, 0) for way in vae.decoders if way.exact}
    assert peaks["frames"] < 0.5 * peaks["whole"]
    assert peaks["rows"] < 0.25 * peaks["whole"]


def test_other_architectures_run_by_their_own_code() -> None:
    model = made()
    model.decoder.conv_in.pad_mode = "constant"
    assert stages.describe(model) is None


# --- faults that the comparison must see ---


def drops_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Past.begin
    monkeypatch.setattr(Past, "begin", lambda self, moment: tuple(map(_zeros, begin(self, moment))))


def _zeros(kept: Any) -> Any:
    return kept if callable(kept) else type(kept)(torch.zeros_like(frames) for frames in kept)


def reads_zeros_before_the_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = stages.Frames
    monkeypatch.setattr(stages, "Frames", lambda before, repeats: frames(before))


def sees_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_whole, "_joined", lambda before, now: now)


@pytest.mark.parametrize(
    "plant", [drops_frames, reads_zeros_beyond_the_borders, reads_zeros_before_the_first_frame, sees_one_frame]
)
def test_planted_errors(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    model, z = made(), latent_of(3)
    plant(monkeypatch)
    assert apart(given_by(ways(model, "frames", FEW)[0], z), decoded(model, z)) > 100 * CLOSE
