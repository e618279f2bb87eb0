"""LTX-2 runs block by block and gives what diffusers gives: convolutions that look ahead, and borders that mirror."""

from typing import Any

import pytest
import torch

from numerics.cases.ltx2 import BLOCKS_23, tiny_ltx2
from remote_vae.core import pairs, stream_layer
from remote_vae.core.blocks import Blocks, block_executors
from remote_vae.core.kept import Kept
from remote_vae.core.local import Frames
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.stages import ltx
from remote_vae.models.vae import DiffusersVAE

from .local_networks import decoded, encoded, lost_decibels, off, ways_of
from .models import shaken
from .test_blocks import ALL, CLOSE, CPU, FEW, ORDERS, apart, given_by

KINDS: dict[str, dict[str, Any]] = {"ltx2": {}, "ltx2.3": BLOCKS_23, "causal": {"decoder_causal": True}}


def made(**config: Any) -> Any:
    torch.manual_seed(0)
    return shaken(tiny_ltx2(**config))


@pytest.fixture(scope="module", params=KINDS)
def module(request: pytest.FixtureRequest) -> Any:
    return made(**KINDS[request.param])


def ways(module: Any, order: str, block_bytes: int) -> tuple[Blocks, ...]:
    """The decoder and the encoder."""
    return ways_of(ltx.describe, module, order, block_bytes)


def latent_of(frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 128, frames, height, width)


def pixels_of(frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, 1 + 8 * (frames - 1), 32 * height, 32 * width) * 2 - 1


@pytest.mark.parametrize(("frames", "batch"), [(1, 2), (2, 1), (3, 1), (4, 1)])
def test_equals_diffusers(module: Any, frames: int, batch: int) -> None:
    """Both ways, from blocks of one row to whole maps, for odd sizes, one frame and several, and batches."""
    z, x = latent_of(frames, batch=batch), pixels_of(frames, batch=batch)
    pixels, parameters = decoded(module, z), encoded(module, x)
    for order in ORDERS:
        for block_bytes in (FEW, 2**14, ALL):
            decoder, encoder = ways(module, order, block_bytes)
            assert apart(given_by(decoder, z), pixels) < CLOSE
            assert apart(given_by(encoder, x), parameters) < CLOSE


@pytest.mark.parametrize("block_bytes", [2**14, ALL])
@pytest.mark.parametrize("order", ORDERS)
def test_pairs_of_frames(module: Any, order: str, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that compute two frames at a time give what diffusers gives, for mirrored borders and odd counts too."""
    monkeypatch.setattr(pairs, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(pairs, "LEAST_POSITIONS", 1)
    made, write = [], pairs.Paired.write

    def noted(self: pairs.Paired, window: torch.Tensor, into: torch.Tensor, *rest: Any) -> None:
        made.append(len(into))
        write(self, window, into, *rest)

    monkeypatch.setattr(pairs.Paired, "write", noted)
    z, x = latent_of(3), pixels_of(3)
    decoder, encoder = ways(module, order, block_bytes)
    assert apart(given_by(decoder, z), decoded(module, z)) < CLOSE
    assert apart(given_by(encoder, x), encoded(module, x)) < CLOSE
    assert made
    assert order == "frames" or any(frames % 2 for frames in made)  # the first frame of a clip is no pair


@pytest.mark.parametrize("size", [(2, 2), (2, 5), (5, 2)])
@pytest.mark.parametrize("block_bytes", [FEW, ALL])
def test_smallest_sides(module: Any, size: tuple[int, int], block_bytes: int) -> None:
    z = latent_of(2, *size)
    assert apart(given_by(ways(module, "rows", block_bytes)[0], z), decoded(module, z)) < CLOSE


def test_bfloat16() -> None:
    """As near to float32 as diffusers is in the same precision, or nearer: at most 0.5 dB less."""
    model, z = made(), latent_of(2, 4, 4)
    exact = decoded(model, z)
    model.to(torch.bfloat16)
    theirs = decoded(model, z.bfloat16())
    ours = given_by(ways(model, "rows", 2**14)[0], z.bfloat16())
    assert lost_decibels(ours, theirs, exact) < 0.5


def test_frames_that_look_ahead_run_together() -> None:
    """One at a time, they would be computed before the frames that they depend on have come."""

    def names(program: Any) -> list[str]:
        return [way.name for way in block_executors(program, lambda: program, CPU, Kept())]

    decoder, encoder = ltx.describe(made()) or (None, None)
    assert set(names(decoder)) == {"rows"}
    assert set(names(encoder)) == {"frames", "rows"}


def test_the_faster_way_comes_first() -> None:
    """In float32 a CPU computes rows that wait for later frames faster than the decoder's own code; otherwise that is
    chosen if it fits.
    """
    for dtype, first in ((torch.float32, "rows"), (torch.bfloat16, "whole")):
        module = made().to(dtype)
        vae = DiffusersVAE(module, source="", revision="", family=family_of(MODELS["ltx2"]))
        assert [way.name for way in (vae.decoders[0], vae.encoders[0])] == [first, "frames"]


@pytest.mark.parametrize("kind", ["ltx2", "ltx2.3"])
def test_prediction(kind: str) -> None:
    """The predicted peak is within 15 % of the live bytes, both ways."""
    widths = {"ltx2": (32, 64, 128), "ltx2.3": (32, 64, 64, 128)}[kind]
    model = made(**{**KINDS[kind], "decoder_block_out_channels": widths, "block_out_channels": (32,) * 4})
    z, x = latent_of(3, 6, 4), pixels_of(2, 6, 4)
    for way, batch in zip(ways(model, "rows", 2**20), (z, x), strict=True):
        assert abs(off(way, batch)) < 0.15


def test_a_latent_with_nothing_to_mirror_is_refused() -> None:
    """Diffusers fails for one row or one column; borders of zeros take them."""
    mirrors, zeros = made(), made(**BLOCKS_23)
    with pytest.raises(RuntimeError, match="Padding size"):
        decoded(mirrors, latent_of(1, 1, 2))
    family = family_of(MODELS["ltx2"])
    least = [DiffusersVAE(m, source="", revision="", family=family).info.rows.least for m in (mirrors, zeros)]
    assert least == [2, 1]
    assert apart(given_by(ways(zeros, "rows", FEW)[0], z := latent_of(2, 1, 1)), decoded(zeros, z)) < CLOSE


@pytest.mark.parametrize(
    "config",
    [{"timestep_conditioning": True}, {"decoder_inject_noise": True}, {"encoder_spatial_padding_mode": "reflect"}],
)
def test_other_architectures_run_by_their_own_code(config: dict[str, Any]) -> None:
    assert ltx.describe(made(**config)) is None


# --- faults that the comparison must see ---


@pytest.mark.parametrize("block_bytes", [FEW, ALL])
def test_a_border_of_zeros_is_seen(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    model, z = made(), latent_of(1)
    monkeypatch.setattr(stream_layer, "_mirror", lambda *window, **borders: None)
    assert apart(given_by(ways(model, "rows", block_bytes)[0], z), decoded(model, z)) > 100 * CLOSE


def test_a_first_row_that_does_not_wait_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, z = made(), latent_of(1)
    honest = stream_layer._mirror

    def hasty(window: torch.Tensor, kept: int, columns: slice, *, top: bool, bottom: bool) -> None:
        honest(window, kept, columns, top=top and kept == 2, bottom=bottom)

    monkeypatch.setattr(stream_layer, "_mirror", hasty)
    assert apart(given_by(ways(model, "rows", FEW)[0], z), decoded(model, z)) > 100 * CLOSE


def test_frames_of_zeros_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames before the first one and after the last one are copies."""
    model, z = made(), latent_of(2)
    monkeypatch.setattr(ltx, "Frames", lambda before, after, repeats: Frames(before, after))
    assert apart(given_by(ways(model, "rows", ALL)[0], z), decoded(model, z)) > 100 * CLOSE


def test_the_wrong_frame_dropped_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the two frames that a clip's first frame becomes, the later one stays."""
    model, z = made(decoder_causal=True), latent_of(3)
    honest = ltx._unfolded

    def wrong(sides: ltx.Sides, copies: int = 1) -> ltx.Function:
        def found(rows: torch.Tensor, new: bool) -> torch.Tensor:
            frames = honest(sides, copies)(rows, False)
            return frames[: len(frames) + 1 - sides[0]] if new else frames

        return found

    monkeypatch.setattr(ltx, "_unfolded", wrong)
    assert apart(given_by(ways(model, "frames", ALL)[0], z), decoded(model, z)) > 100 * CLOSE
