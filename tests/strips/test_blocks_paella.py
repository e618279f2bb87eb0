"""Stable Cascade's stage A runs a few rows at a time and gives what its own code gives."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from torch.nn import functional

from remote_vae.core.canvas import Canvas
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.stages import paella
from remote_vae.models.vae import DiffusersVAE

from .models import shaken
from .test_exact import cast

CLOSE = 1e-5  # of the largest value
FAMILY = family_of(MODELS["stable-cascade"])
SHAPES = [
    *(((2, 4, 5, 7), True), ((1, 4, 1, 1), True), ((1, 4, 17, 6), True)),
    *(((2, 3, 20, 28), False), ((1, 3, 4, 4), False), ((1, 3, 68, 24), False)),
]


def served(dtype: torch.dtype = torch.float32, **config: Any) -> DiffusersVAE:
    torch.manual_seed(5)
    module = shaken(PaellaVQModel(**{"embed_dim": 16, "bottleneck_blocks": 2, "num_vq_embeddings": 8, **config}))
    for name, values in module.named_buffers():  # of the last norm, which is fixed
        if values.ndim:
            values.uniform_(0.3, 3 if name.endswith("var") else 1)
    FAMILY.prepare(module)
    return DiffusersVAE(cast(module, dtype), source="m", revision="", family=FAMILY)


def rows_of(vae: DiffusersVAE, *, decoding: bool, block_bytes: int) -> Any:
    found: Any = next(each for each in (vae.decoders if decoding else vae.encoders) if each.name == "rows")
    return replace(found, block_bytes=block_bytes)


def given(vae: DiffusersVAE, z: torch.Tensor, expected: torch.Tensor, *, decoding: bool, block_bytes: int) -> Any:
    canvas = Canvas(len(expected), expected.shape[2], lambda block: block, row_axis=2)
    rows_of(vae, decoding=decoding, block_bytes=block_bytes).run(z, canvas.put, lambda: None)
    assert canvas.output.shape == expected.shape
    return canvas.output


def apart(vae: DiffusersVAE, z: torch.Tensor, *, decoding: bool, block_bytes: int) -> float:
    expected = vae.decode(z) if decoding else vae.encode(z)
    found = given(vae, z, expected, decoding=decoding, block_bytes=block_bytes)
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("block_bytes", [1, 2000, 2**23])
@pytest.mark.parametrize(("shape", "decoding"), SHAPES)
@torch.inference_mode()
def test_equals_own_code(shape: tuple[int, ...], decoding: bool, block_bytes: int) -> None:
    """Blocks of one row and more, odd sizes and batches, both ways."""
    assert apart(served(), torch.randn(shape), decoding=decoding, block_bytes=block_bytes) < CLOSE


@pytest.mark.parametrize("decoding", [True, False])
@torch.inference_mode()
def test_zeros_around_the_picture_are_seen(decoding: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above notice it when a convolution does not repeat the edges."""
    wrong = SimpleNamespace(pad=lambda window, sides, mode="": functional.pad(window, sides), conv2d=functional.conv2d)
    monkeypatch.setattr(paella, "functional", wrong)
    z = torch.randn(1, 4, 6, 5) if decoding else torch.randn(1, 3, 24, 20)
    assert apart(served(), z, decoding=decoding, block_bytes=1) > 100 * CLOSE


@torch.inference_mode()
def test_sixteen_bits() -> None:
    """As near to float32 as own code is in the same precision, or nearer: at most 0.5 dB less."""
    z = torch.randn(1, 4, 12, 12)
    exact, vae = served().decode(z), served(torch.bfloat16)
    z = z.to(torch.bfloat16)
    expected = vae.decode(z)
    found = given(vae, z, expected, decoding=True, block_bytes=1)
    ours, theirs = ((pixels.float() - exact).square().mean() for pixels in (found, expected))
    assert 10 * torch.log10(ours / theirs) < 0.5


@torch.inference_mode()
def test_rows_save_memory() -> None:
    """With the true layers rows hold less than half of own code, and both ways are predicted within 15 %."""
    vae = served(embed_dim=96, bottleneck_blocks=12)
    for executors, shape in ((vae.decoders, (1, 4, 64, 48)), (vae.encoders, (1, 3, 256, 192))):
        z, peaks = torch.randn(shape), []
        for executor in (executors[0], replace(executors[-1], block_bytes=2**16)):
            with LiveBytes() as live:
                executor.run(z.clone(), lambda *block: None, lambda: None)
            predicted = executor.peak_bytes(shape, torch.float32, 0)
            assert predicted is not None
            assert abs(predicted / live.peak - 1) < 0.15, (executor, predicted, live.peak)
            peaks.append(live.peak)
        assert peaks[1] < 0.5 * peaks[0]


def test_unknown_parts_are_not_described() -> None:
    """Another kernel is left to the model's own code."""
    module = served().module
    module.up_blocks[0] = torch.nn.Conv2d(4, 16, 3, dilation=2)
    assert paella.describe(module) is None
