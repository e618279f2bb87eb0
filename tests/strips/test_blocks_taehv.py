"""The previews of videos run block by block, both ways, and give what their own code gives."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from numerics.cases.taehv import tiny
from remote_vae.core.blocks import Blocks
from remote_vae.core.executor import choose
from remote_vae.core.kept import Kept
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.local import Near
from remote_vae.core.local_frames import LeaveOut
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.stages import taehv
from remote_vae.models.vae import DiffusersVAE

from .local_networks import (
    CPU,
    drops_frames,
    forgets_rows,
    forgets_the_row_of_a_step,
    lost_decibels,
    off,
    ways_of,
)
from .models import shaken
from .test_blocks import ALL, CLOSE, FEW, ORDERS, apart, given_by

KINDS: dict[str, dict[str, Any]] = {
    "taew2.1": {"latent_channels": 4},
    "taew2.2": {"latent_channels": 4, "patch_size": 2},
    "taew2.2-super": {"latent_channels": 4, "patch_size": 2, "widths": (16, 8, 8, 6), "super_decoder": True},
    "taecvx": {"latent_channels": 4, "even_whole": True, "scaling_factor": 0.7},
    "taeltx2": {"latent_channels": 4, "patch_size": 4, "encoder_strides": (2, 2, 2), "decoder_strides": (2, 2, 2)},
    "taeh3": {"latent_channels": 4, "patch_size": 2, "clip": 5, "dropped": 3},
}


def made(kind: str, **config: Any) -> Any:
    torch.manual_seed(0)
    return shaken(tiny(**{**KINDS[kind], **config})())


@pytest.fixture(scope="module", params=KINDS)
def module(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


def ways(module: Any, order: str, block_bytes: int) -> tuple[Blocks, ...]:
    """The decoder and the encoder."""
    return ways_of(taehv.describe, module, order, block_bytes)


def latent_of(module: Any, frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, module.config.latent_channels, frames, height, width)


def pixels_of(module: Any, frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    ratio = module.spatial_compression_ratio
    return torch.rand(batch, 3, frames, ratio * height, ratio * width) * 2 - 1


def check(module: Any, way: int, order: str, block_bytes: int, given: torch.Tensor) -> None:
    with torch.inference_mode():
        expected = module.encode(given) if way else module.decode(given)
    assert expected.std() > 0.01
    assert apart(given_by(ways(module, order, block_bytes)[way], given), expected) < CLOSE


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("latents", [1, 2, 3, 6, 9])
def test_decodes_as_its_own_code(module: Any, latents: int, order: str) -> None:
    """From blocks of one row to whole maps, for odd sizes, one latent frame and several, and batches."""
    z = latent_of(module, latents, batch=1 + latents % 2)
    for block_bytes in (FEW, ALL):
        check(module, 0, order, block_bytes, z)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("frames", [1, 2, 8, 17, 18, 36])
def test_encodes_as_its_own_code(module: Any, frames: int, order: str) -> None:
    """Also if the last group or clip is not whole."""
    x = pixels_of(module, frames, batch=1 + frames % 2)
    for block_bytes in (FEW, ALL):
        check(module, 1, order, block_bytes, x)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 1)])
def test_smallest_sides(module: Any, size: tuple[int, int]) -> None:
    for order in ORDERS:
        check(module, 0, order, FEW, latent_of(module, 2, *size))
        check(module, 1, order, FEW, pixels_of(module, 5, *size))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["taecvx", "taew2.2-super"])
def test_sixteen_bits(kind: str, dtype: torch.dtype) -> None:
    """As near to float32 as its own code is in the same precision, or nearer: at most 0.5 dB less."""
    model = made(kind)
    z = latent_of(model, 3, 6, 6)
    with torch.inference_mode():
        exact = model.decode(z)
        model.to(dtype)
        theirs = model.decode(z.to(dtype))
    ours = given_by(ways(model, "frames", 2**13)[0], z.to(dtype))
    assert lost_decibels(ours, theirs, exact) < 0.5


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.float32) for kind in KINDS if kind != "taew2.2"), ("taew2.2", torch.bfloat16)]
)
def test_prediction(kind: str, dtype: torch.dtype) -> None:
    """The predicted peak is within 15 % of the live bytes, both ways, for several clips too."""
    model = made(kind, widths=(64, 32, 32, 16), encoder_width=32).to(dtype)
    group = model.temporal_compression_ratio
    for order in ORDERS:
        for way, given in ((0, latent_of(model, 6, 8, 5)), (1, pixels_of(model, 6 * group, 8, 5))):
            executor = ways(model, order, 2**18)[way]
            assert abs(off(executor, given.to(dtype))) < 0.15, (order, way)


@pytest.mark.parametrize(
    ("name", "encodes"), [("taew2.1", False), ("taew2.2-super", False), ("taeltx2", False), ("taew2.1", True)]
)
def test_memory_of_true_clips(name: str, encodes: bool) -> None:
    """Beside the input, small blocks of frames hold less than half of what own code does."""
    family, config = family_of(MODELS[name]), MODELS[name].config
    with torch.device("meta"):
        model = family.load_class()(**(config or {})).eval().requires_grad_(False)
        given = pixels_of(model, 25, 32, 32) if encodes else latent_of(model, 7, 32, 32)
    described = taehv.describe(model)
    assert described is not None
    way = Blocks("frames", False, described[encodes], lambda: described[encodes], CPU, 2**21, Kept(), True)
    with torch.inference_mode(), LiveBytes() as live:
        (model.encode if encodes else model.decode)(given)
    held = way.peak_bytes(tuple(given.shape), torch.float32, 0) - given.nbytes
    assert held < 0.5 * live.peak, held / live.peak


def test_the_planner_chooses() -> None:
    """Frames come first, both ways; a clip for which the memory is short runs by another exact plan that fits."""
    vae = DiffusersVAE(made("taew2.1"), source="", revision="", family=family_of(MODELS["taew2.1"]))
    assert [way.name for way in (vae.decoders[0], vae.encoders[0])] == ["frames", "frames"]
    assert vae.info.plans == ("frames", "rows", "whole")
    shape = (1, 4, 5, 128, 128)
    first = next(choose(vae.decoders, shape, torch.float32, budget=2**40)).peak_bytes
    assert first is not None
    less = next(choose(vae.decoders, shape, torch.float32, budget=first - 1))
    assert less.executor.exact
    assert less.fits(first - 1)


def test_the_first_frame_is_early() -> None:
    """It is there before a fifth of the work on nine latent frames has been done."""
    model, checks, early = made("taew2.1"), 0, []

    def check() -> None:
        nonlocal checks
        checks += 1

    with torch.inference_mode():
        ways(model, "frames", FEW)[0].run(latent_of(model, 9), lambda *block: early.append(checks), check)
    assert 0 < early[23] < checks / 5  # the rows of the first frame


def test_other_architectures_run_by_their_own_code() -> None:
    model = made("taew2.2-super")
    model.decoder[1].conv[0].dilation = (2, 2)
    assert taehv.describe(model) is None
    model = made("taew2.1")
    model.decoder[6].mode = "bilinear"
    assert taehv.describe(model) is None


# --- faults that the comparison must see ---


def forgets_rows_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = taehv._of_channels

    def forgetful(conv: Any) -> Near:
        near = honest(conv)

        def zeroed(window: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
            window[:, :, : near.halo - top] = 0
            return near.function(window, top, bottom)

        return replace(near, function=zeroed)

    monkeypatch.setattr(taehv, "_of_channels", forgetful)


def leaves_out_frames_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taehv, "LeaveOut", lambda first, period: LeaveOut(first, 2**20))


def leaves_out_frames_of_even_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taehv, "LeaveOut", lambda first, period: LeaveOut(3, period))


def begins_clips_with_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taehv.torch, "full_like", lambda frames, value: torch.zeros_like(frames))


@pytest.mark.parametrize(
    ("kind", "encodes", "order", "plant"),
    [
        ("taew2.1", False, "frames", drops_frames),
        ("taew2.1", True, "frames", drops_frames),
        ("taew2.2-super", False, "frames", drops_frames),
        ("taew2.1", False, "rows", forgets_rows),
        ("taew2.1", True, "rows", forgets_the_row_of_a_step),
        ("taew2.2-super", False, "rows", forgets_rows_of_channels),
        ("taeh3", True, "frames", begins_clips_with_grey),
    ],
)
def test_planted_errors(
    kind: str, encodes: bool, order: str, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(kind)
    given = pixels_of(model, 18) if encodes else latent_of(model, 3)
    with torch.inference_mode():
        expected = model.encode(given) if encodes else model.decode(given)
    plant(monkeypatch)
    assert apart(given_by(ways(model, order, FEW)[encodes], given), expected) > 100 * CLOSE


@pytest.mark.parametrize(
    ("kind", "latents", "plant"),
    [("taeh3", 6, leaves_out_frames_once), ("taecvx", 4, leaves_out_frames_of_even_latents)],
)
def test_wrong_numbers_of_frames(
    kind: str, latents: int, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(kind)
    plant(monkeypatch)
    z = latent_of(model, latents)
    assert given_by(ways(model, "frames", ALL)[0], z).shape[2] != model.decode(z).shape[2]
