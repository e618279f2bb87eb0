"""The tiny previews run a few rows at a time and give what diffusers gives."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny

from remote_vae.core.canvas import Canvas
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.local import Near
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.stages import tiny_autoencoder
from remote_vae.models.vae import DiffusersVAE

from .models import shaken

CLOSE = 1e-5  # of the largest value
LATENTS = ((2, 4, 5, 7), (1, 4, 1, 1), (1, 4, 17, 6))
PIXELS = ((2, 3, 40, 56), (1, 3, 8, 8), (1, 3, 136, 48))


def served() -> DiffusersVAE:
    torch.manual_seed(5)
    widths = {f"{half}_block_out_channels": (16,) * 4 for half in ("encoder", "decoder")}
    return DiffusersVAE(shaken(AutoencoderTiny(**widths)), source="m", revision="", family=family_of(MODELS["taesd"]))


def rows_of(vae: DiffusersVAE, *, decoding: bool) -> Any:
    return next(each for each in (vae.decoders if decoding else vae.encoders) if each.name == "rows")


def apart(vae: DiffusersVAE, z: torch.Tensor, *, decoding: bool, block_bytes: int) -> float:
    expected = vae.module.decode(z).sample if decoding else vae.module.encode(z).latents
    canvas = Canvas(len(expected), expected.shape[2], lambda block: block, row_axis=2)
    replace(rows_of(vae, decoding=decoding), block_bytes=block_bytes).run(z, canvas.put, lambda: None)
    assert canvas.output.shape == expected.shape
    return float((canvas.output - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("block_bytes", [1, 2000, 2**23])
@pytest.mark.parametrize(("shape", "decoding"), [(z, True) for z in LATENTS] + [(x, False) for x in PIXELS])
@torch.inference_mode()
def test_equals_diffusers(shape: tuple[int, ...], decoding: bool, block_bytes: int) -> None:
    """Blocks of one row and more, odd sizes and batches, both ways."""
    assert apart(served(), torch.randn(shape), decoding=decoding, block_bytes=block_bytes) < CLOSE


@torch.inference_mode()
def test_a_latent_without_limits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_autoencoder, "_limited", lambda rows: rows)
    assert apart(served(), 3 * torch.randn(1, 4, 6, 5), decoding=True, block_bytes=1) > 100 * CLOSE


@torch.inference_mode()
def test_a_forgotten_row_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stride that reads no row above those that it makes."""
    honest = tiny_autoencoder.strided_of

    def forgetful(conv: Any) -> Near:
        near = honest(conv)
        return replace(near, function=lambda window, top, bottom: near.function(window[:, :, 1 - top :], 1, bottom))

    monkeypatch.setattr(tiny_autoencoder, "strided_of", forgetful)
    assert apart(served(), torch.randn(1, 3, 48, 40), decoding=False, block_bytes=1) > 100 * CLOSE


@torch.inference_mode()
def test_rows_save_memory() -> None:
    """Own code comes first; rows hold less than half as much, and both ways are predicted within 15 %."""
    vae = served()
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
