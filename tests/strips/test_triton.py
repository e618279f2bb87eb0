"""The kernels for CUDA devices; without one they are run by Triton's interpreter: the same code, on a CPU."""

from typing import Any

import pytest
import torch

from remote_vae.core import rows, sweep
from remote_vae.core.norm import Plain
from remote_vae.core.stages import Norm
from remote_vae.core.sweep import StripPlan
from remote_vae.models.stages.autoencoder_kl import describe_decoder, describe_encoder

from .models import small
from .test_exact import CLOSE, FEW_ROWS, apart, through

pytest.importorskip("triton")
from remote_vae.core import norm_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def kernels() -> norm_triton.Triton:
    return norm_triton.Triton()


def strip(channels: int, rows: int, width: int, dtype: torch.dtype, *, right: int = 0) -> torch.Tensor:
    whole = (torch.randn(1, channels, rows, width + right) * 3 + 20).to(dtype)
    return whole.contiguous(memory_format=torch.channels_last)[..., :width]


SHAPES = [(8, 3, 5), (64, 8, 16), (96, 9, 31), (200, 2, 7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_moments(shape: tuple[int, int, int], dtype: torch.dtype, kernels: Any) -> None:
    """Statistics of any shape are those of the values in double precision, also of a strip within wider rows."""
    for right in (0, 1):
        given = strip(*shape, dtype, right=right)
        found = kernels.moments(given)
        exact = given.double()
        torch.testing.assert_close(found.mean.double(), exact.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)
        spread = exact.var((0, 2, 3), correction=0) * found.count
        torch.testing.assert_close(found.spread.double(), spread, rtol=1e-4, atol=0)


def test_many_parts(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of several tiles, and a last one that is not full, are merged by their true counts."""
    monkeypatch.setattr(norm_triton, "MOST_PARTS", 3)
    given = strip(16, 21, 37, torch.float32)
    given += torch.linspace(0, 50, 21).view(1, 1, -1, 1)  # the means of blocks lie far apart
    found, exact = kernels.moments(given), given.double()
    spread = exact.var((0, 2, 3), correction=0) * found.count
    torch.testing.assert_close(found.spread.double(), spread, rtol=1e-4, atol=0)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_normalise(shape: tuple[int, int, int], dtype: torch.dtype, silu: bool, kernels: Any) -> None:
    """Norm and SiLU are those of plain PyTorch, and nothing beside the rows is written."""
    channels = shape[0]
    stage = Norm(8, 1e-6, torch.randn(channels), torch.randn(channels))
    source, moments = strip(*shape, dtype), Plain().moments(strip(*shape, torch.float32))
    into, expected = (torch.zeros_like(strip(*shape, dtype, right=2)) for _ in range(2))
    frame = torch.full((1, channels, shape[1], shape[2] + 2), 7.0, dtype=dtype)
    frame = frame.contiguous(memory_format=torch.channels_last)
    into = frame[..., : shape[2]]
    kernels.normalise(source, into, stage, moments.of_groups(8), silu=silu)
    Plain().normalise(source, expected, stage, moments.of_groups(8), silu=silu)
    torch.testing.assert_close(into, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    assert (frame[..., shape[2] :] == 7).all()


def test_through_a_model(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model decodes and encodes by these kernels as by diffusers' own code."""
    monkeypatch.setattr(sweep, "kernels_for", lambda device: kernels)
    model, z, x = small((8, 16, 16)), torch.randn(1, 4, 4, 3), torch.randn(1, 3, 16, 12)
    assert apart(through(describe_decoder(model), z, StripPlan(FEW_ROWS)), model.decode(z).sample) < CLOSE
    found = through(describe_encoder(model), x, StripPlan(FEW_ROWS))
    assert apart(found, model.encode(x).latent_dist.parameters) < CLOSE


def test_where_they_run(monkeypatch: pytest.MonkeyPatch, kernels: Any) -> None:
    """CUDA devices take these kernels where Triton is installed, and plain PyTorch where it is not."""
    cuda = torch.device("cuda")
    assert type(rows.kernels_for(cuda)).__name__ == "Triton"
    monkeypatch.setattr(rows, "find_spec", lambda name: None)
    assert isinstance(rows.kernels_for(cuda), Plain)
    assert isinstance(rows.kernels_for(torch.device("mps")), Plain)
