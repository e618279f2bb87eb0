"""The tiny previews run a few rows at a time and give what their own code gives."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny

from remote_vae.core.canvas import Canvas
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.local import Near
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.previews.taef2 import TAEF2
from remote_vae.models.stages import local_parts, tiny_autoencoder
from remote_vae.models.vae import DiffusersVAE

from .local_networks import knows_the_first_block_only
from .models import shaken

CLOSE = 1e-5  # of the largest value
KINDS = ("taesd", "taef2")
LATENTS = ((2, 4, 5, 7), (1, 4, 1, 1), (1, 4, 17, 6))
PIXELS = ((2, 3, 40, 56), (1, 3, 8, 8), (1, 3, 136, 48))


def served(kind: str = "taesd") -> DiffusersVAE:
    torch.manual_seed(5)
    widths = {f"{half}_block_out_channels": (16,) * 4 for half in ("encoder", "decoder")}
    module = AutoencoderTiny(**widths) if kind == "taesd" else TAEF2(latent_channels=4, width=16)
    return DiffusersVAE(shaken(module), source="m", revision="", family=family_of(MODELS[kind]))


def rows_of(vae: DiffusersVAE, *, decoding: bool) -> Any:
    return next(each for each in (vae.decoders if decoding else vae.encoders) if each.name == "rows")


def apart(vae: DiffusersVAE, z: torch.Tensor, *, decoding: bool, block_bytes: int) -> float:
    expected = vae.decode(z) if decoding else vae.encode(z)
    canvas = Canvas(len(expected), expected.shape[2], lambda block: block, row_axis=2)
    replace(rows_of(vae, decoding=decoding), block_bytes=block_bytes).run(z, canvas.put, lambda: None)
    assert canvas.output.shape == expected.shape
    return float((canvas.output - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block_bytes", [1, 2000, 2**23])
@pytest.mark.parametrize(("shape", "decoding"), [(z, True) for z in LATENTS] + [(x, False) for x in PIXELS])
@torch.inference_mode()
def test_equals_own_code(shape: tuple[int, ...], decoding: bool, block_bytes: int, kind: str) -> None:
    """Blocks of one row and more, odd sizes and batches, both ways."""
    assert apart(served(kind), torch.randn(shape), decoding=decoding, block_bytes=block_bytes) < CLOSE


@torch.inference_mode()
def test_a_latent_without_limits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_autoencoder, "limited", lambda rows: rows)
    assert apart(served(), 3 * torch.randn(1, 4, 6, 5), decoding=True, block_bytes=1) > 100 * CLOSE


@torch.inference_mode()
def test_a_forgotten_row_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stride that reads no row above those that it makes."""
    honest = local_parts.strided_of

    def forgetful(conv: Any) -> Near:
        near = honest(conv)
        return replace(near, function=lambda window, top, bottom: near.function(window[:, :, 1 - top :], 1, bottom))

    monkeypatch.setattr(local_parts, "strided_of", forgetful)
    assert apart(served(), torch.randn(1, 3, 48, 40), decoding=False, block_bytes=1) > 100 * CLOSE


@pytest.mark.parametrize("decoding", [True, False])
@torch.inference_mode()
def test_the_statistics_of_the_first_rows_are_seen(decoding: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    knows_the_first_block_only(monkeypatch)
    z = torch.randn(1, 4, 9, 7) if decoding else torch.randn(1, 3, 72, 56)
    assert apart(served("taef2"), z, decoding=decoding, block_bytes=1) > 100 * CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_sixteen_bits(kind: str, dtype: torch.dtype) -> None:
    """As near to float32 as own code is in the same precision, or nearer: at most 0.5 dB less."""
    z, vae = torch.randn(1, 4, 12, 12), served(kind)
    exact, family = vae.decode(z), family_of(MODELS[kind])
    vae = DiffusersVAE(vae.module.to(dtype), source="m", revision="", family=family)
    canvas = Canvas(1, exact.shape[2], lambda block: block, row_axis=2)
    replace(rows_of(vae, decoding=True), block_bytes=1).run(z.to(dtype), canvas.put, lambda: None)
    ours, theirs = ((found.float() - exact).square().mean() for found in (canvas.output, vae.decode(z.to(dtype))))
    assert 10 * torch.log10(ours / theirs) < 0.5


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_rows_save_memory(kind: str) -> None:
    """Own code comes first; rows hold less than half as much, and both ways are predicted within 15 %."""
    vae = served(kind)
    for executors, shape in ((vae.decoders, (1, 4, 64, 32)), (vae.encoders, (1, 3, 512, 256))):
        z, peaks = torch.randn(shape), []
        for executor in (executors[0], replace(executors[-1], block_bytes=2**16)):
            with LiveBytes() as live:
                executor.run(z.clone(), lambda *block: None, lambda: None)
            predicted = executor.peak_bytes(shape, torch.float32, 0)
            assert predicted is not None
            assert abs(predicted / live.peak - 1) < 0.15, (executor, predicted, live.peak)
            peaks.append(live.peak)
        assert peaks[1] < 0.5 * peaks[0]
