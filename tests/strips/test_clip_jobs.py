"""Jobs whose clips run in strips: what the reply says, and what is left when a job ends before its clip does."""

from typing import Any

import pytest
import torch

from remote_vae.core import strips
from remote_vae.core.decode import decode
from remote_vae.core.encode import encode
from remote_vae.core.executor import RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.models.families import MODELS, family_of, find_recipe
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Posterior, Scaling, ScalingMode

from .test_clips import hunyuan_video

RECIPE = find_recipe("hunyuanvideo")
GENEROUS = 2**40


@pytest.fixture(scope="module")
def vae() -> DiffusersVAE:
    return DiffusersVAE(hunyuan_video(), source="seeded", revision="", family=family_of(MODELS["hunyuanvideo"]))


def through(vae: DiffusersVAE, z: torch.Tensor, options: RunOptions, output: Output = Output.RAW) -> Any:
    fit = fit_latent(RECIPE, vae.info, tuple(z.shape), model="hunyuanvideo", height=None, width=None)
    return decode(vae, RECIPE, z, fit=fit, scaling=Scaling(ScalingMode.NONE), output=output, options=options)


def latent(frames: int = 5, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, frames, 3, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("output", list(Output))
def test_outputs_agree(output: Output, vae: DiffusersVAE) -> None:
    """Every output of a batch of clips is the same whether it comes in windows of strips or from the model's code."""
    by_strips, own = (through(vae, latent(5, 2), options, output) for options in (RunOptions("strips"), RunOptions()))
    assert (by_strips.plan, own.plan) == ("strips", "whole")
    assert by_strips.tensor.shape == own.tensor.shape
    most = 1 if own.tensor.dtype is torch.uint8 else 2e-5
    assert (by_strips.tensor.float() - own.tensor.float()).abs().max() <= most


def test_encode_by_plan(vae: DiffusersVAE) -> None:
    """A batch of clips is encoded in strips as without, and the reply names the plan."""
    pixels = torch.rand(2, 3, 17, 16, 24)
    found = [
        encode(vae, RECIPE, pixels, scaling=Scaling(), posterior=Posterior.PARAMETERS, options=options)
        for options in (RunOptions("strips-recompute"), RunOptions())
    ]
    assert [item.plan for item in found] == ["strips-recompute", "whole"]
    torch.testing.assert_close(found[0].tensor, found[1].tensor, atol=1e-5, rtol=1e-5)


def test_cancelled_in_the_second_window(vae: DiffusersVAE) -> None:
    """A job that is stopped in the middle of a clip leaves no memory behind, and the next job is as exact as any."""
    calls = 0

    def checkpoint() -> None:
        nonlocal calls
        calls += 1
        if calls == 80:
            raise KeyboardInterrupt

    with LiveBytes() as live:
        z = latent(8)
        with pytest.raises(KeyboardInterrupt):
            through(vae, z, RunOptions("strips", checkpoint=checkpoint))
        assert live.current <= 2 * z.nbytes
    assert calls == 80
    expected = vae.decode(latent())
    assert (through(vae, latent(), RunOptions("strips")).tensor - expected).abs().max() < 1e-4


def test_memory_that_is_taken_half_way(vae: DiffusersVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the device fills up in the middle of a clip, the next smaller exact plan begins again."""
    monkeypatch.setattr(strips, "SMALL_BYTES", 0)
    right, windows = strips.run, 0

    def poor(*given: Any, **options: Any) -> None:
        nonlocal windows
        windows += 1
        if windows == 2:
            raise torch.OutOfMemoryError("none left")
        right(*given, **options)

    monkeypatch.setattr(strips, "run", poor)
    z = torch.randn(1, 4, 5, 10, 8)
    found = through(vae, z, RunOptions(budget=lambda: GENEROUS))
    assert windows == 4
    assert found.plan != "tiles"
    assert (found.tensor - vae.decode(z)).abs().max() < 1e-4


def test_the_rest_of_a_video_is_not_decoded(vae: DiffusersVAE) -> None:
    """If the first frame alone is wanted, the run ends when it is there, and nothing is left behind."""
    counts: list[int] = []

    def counted() -> None:
        counts[-1] += 1

    z, found = latent(13), []
    for output in (Output.UINT8, Output.FIRST):
        counts.append(0)
        with LiveBytes() as live:
            result = through(vae, z, RunOptions("strips", checkpoint=counted), output)
            found.append(result.tensor.clone())
            del result
            assert live.current <= found[-1].nbytes + z.nbytes
    assert torch.equal(found[1], found[0][:1])
    assert counts[1] < counts[0] / 2
