"""Pictures that nobody has the time to decode in a test: on the meta device nothing is computed, but all is counted."""

import pytest
import torch
from diffusers import AutoencoderKL

from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.strips import predict, run
from remote_vae.core.sweep import MapSize, StripPlan
from remote_vae.models.families import find_model
from remote_vae.models.stages.autoencoder_kl import describe_decoder

STRIP_BYTES = 2**28  # larger than the planner's own, for fewer steps
MACHINE = 24e9


@pytest.fixture(scope="module")
def model() -> AutoencoderKL:
    """Stable Diffusion's widths, in bfloat16."""
    row = find_model("sd1")
    assert row is not None
    with torch.device("meta"):
        module = AutoencoderKL(**row.config)
    return torch.nn.Module.to(module.eval().requires_grad_(False), torch.bfloat16)


def latent(size: int) -> torch.Tensor:
    return torch.empty(1, 4, size // 8, size // 8, dtype=torch.bfloat16, device="meta")


@pytest.mark.parametrize("recompute", [False, True])
def test_16_megapixels(recompute: bool, model: AutoencoderKL, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 4096x4096 picture takes less than half of 24 GB by strips, as predicted within 15 %."""
    for room in ("attention", "steps"):
        monkeypatch.setattr(f"remote_vae.core.{room}.CHUNK_BYTES", 2**29)
    monkeypatch.setattr("remote_vae.core.norm.PLAIN_BYTES", STRIP_BYTES)
    program, plan = describe_decoder(model), StripPlan(STRIP_BYTES, recompute)
    assert program is not None
    with LiveBytes() as live:
        run(program, latent(4096), plan, lambda row, strip: None)
    assert live.peak < MACHINE / 2
    assert abs(predict(program, MapSize(512, 512, 4, 2), plan) / live.peak - 1) < 0.15


def test_what_it_saves(model: AutoencoderKL) -> None:
    """By diffusers' own code the same picture does not fit into 24 GB: the tests' scale is the true one."""
    with LiveBytes() as live:
        model.decode(latent(2048))
    assert 4 * live.peak > MACHINE  # without attention's matrix memory grows with the pixels


def test_plain_kernels_hold_little(model: AutoencoderKL) -> None:
    """Where no kernels of a device's own exist, a whole map is normalised without a float32 copy of it."""
    program, plan = describe_decoder(model), StripPlan(2**62)
    assert program is not None
    with LiveBytes() as live:
        run(program, latent(1024), plan, lambda row, strip: None)
    assert abs(predict(program, MapSize(128, 128, 4, 2), plan) / live.peak - 1) < 0.15
