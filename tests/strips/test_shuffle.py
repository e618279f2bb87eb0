"""HunyuanImage in strips, whose channels become pixels, gives the pixels of diffusers' own code."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanImage

from remote_vae.core import shuffle
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.strips import Strips, strip_executors
from remote_vae.core.sweep import StripPlan
from remote_vae.models.stages.hunyuan_image import describe_decoder, describe_encoder

from .models import shaken
from .test_exact import CLOSE, PLANS, apart, cast, through


def hunyuan_image(widths: tuple[int, ...] = (32, 64, 64), seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=widths, layers_per_block=1,
        spatial_compression_ratio=2 ** (len(widths) - 1), sample_size=64, scaling_factor=1.0,
    )  # fmt: skip
    return shaken(model)


@pytest.fixture(scope="module")
def model() -> Any:
    return hunyuan_image()


@pytest.mark.parametrize("plan", PLANS)
def test_decode(plan: str, model: Any) -> None:
    """Decoding in strips of any height differs from the whole decoder by rounding alone, at odd sizes too."""
    z = torch.randn(1, 8, 7, 5)
    assert apart(through(describe_decoder(model), z, PLANS[plan]), model.decode(z).sample) < CLOSE


@pytest.mark.parametrize("plan", PLANS)
def test_encode(plan: str, model: Any) -> None:
    """Encoding in strips of any height differs from the whole encoder by rounding alone."""
    x = torch.randn(1, 3, 28, 20)
    assert apart(through(describe_encoder(model), x, PLANS[plan]), model.encode(x).latent_dist.parameters) < CLOSE


@pytest.mark.parametrize("forgotten", ["shuffle", "with_channels"])
def test_a_shortcut_counts(forgotten: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above notice it when a shortcut is forgotten, or its channels are in another order."""
    right = getattr(shuffle, forgotten)

    def reversed_channels(rows: torch.Tensor, *numbers: int) -> torch.Tensor:
        found: torch.Tensor = right(rows, *numbers).flip(1)
        return found

    monkeypatch.setattr(shuffle, forgotten, reversed_channels)
    z, x = torch.randn(1, 8, 4, 3), torch.randn(1, 3, 16, 12)
    assert apart(through(describe_decoder(model), z, StripPlan(6000)), model.decode(z).sample) > 100 * CLOSE
    found = through(describe_encoder(model), x, StripPlan(6000))
    assert apart(found, model.encode(x).latent_dist.parameters) > 100 * CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype: torch.dtype) -> None:
    """In 16 bits, strips are as near to the float32 decode as diffusers is in the same precision, within 0.5 dB."""
    model, z = hunyuan_image(seed=1), torch.randn(1, 8, 16, 16)
    reference = model.decode(z).sample
    model, z = cast(model, dtype), z.to(dtype)
    found = through(describe_decoder(model), z, StripPlan(6000))

    def noise(pixels: torch.Tensor) -> torch.Tensor:
        return 10 * torch.log10((pixels.float() - reference).square().mean())

    assert noise(found) - noise(model.decode(z).sample) < 0.5


@pytest.mark.parametrize("decoding", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prediction(decoding: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every executor's predicted peak is within 15 % of the live bytes that a run holds."""
    for room in ("attention", "steps"):
        monkeypatch.setattr(f"remote_vae.core.{room}.CHUNK_BYTES", 64 * 1024)
    model = cast(hunyuan_image((32, 64, 128, 128)), dtype)
    program = describe_decoder(model) if decoding else describe_encoder(model)
    assert program is not None
    shape = (1, 8, 16, 20) if decoding else (1, 3, 128, 160)
    for executor in strip_executors(program, "cpu", 1):
        assert isinstance(executor, Strips)
        given = torch.randn(shape).to(dtype)
        with LiveBytes() as live:
            executor.run(given.clone(), lambda *block: None, lambda: None)
        assert live.current == 0
        assert abs(executor.peak_bytes(shape, dtype, 0) / live.peak - 1) < 0.15


def test_unknown_parts_are_not_described(model: Any) -> None:
    """A block that changes its width is left to the model's own code."""
    other = hunyuan_image()
    other.decoder.up_blocks[0].conv_shortcut = torch.nn.Conv2d(64, 64, 1)
    assert describe_decoder(other) is None
    assert describe_encoder(other) is not None
