"""Biases that norms and residual blocks take, so that no convolution adds them; checked against diffusers."""

from itertools import pairwise

import pytest
import torch

from remote_vae.core import late_biases
from remote_vae.core.late_biases import pays, with_late_biases
from remote_vae.core.stages import Downsample, Program, Residual, Upsample, layers_of
from remote_vae.models.stages.autoencoder_kl import describe_decoder, describe_encoder

from .test_exact import CLOSE, FAMILIES, PLANS, apart, through

SOME_PLANS = ("few rows", "few rows, again", "one row, three at a time, again", "whole")


def late(program: Program | None) -> Program:
    assert program is not None
    return with_late_biases(program)


@pytest.mark.parametrize("plan", SOME_PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_stays(family: str, plan: str) -> None:
    """Both ways differ from diffusers by rounding alone, at odd sizes too, in every plan."""
    model = FAMILIES[family]()
    ratio = 2 ** (len(model.config.block_out_channels) - 1)
    z, x = torch.randn(1, model.config.latent_channels, 7, 5), torch.randn(1, 3, 5 * ratio, 7 * ratio)
    assert apart(through(late(describe_decoder(model)), z, PLANS[plan]), model.decode(z).sample) < CLOSE
    found = through(late(describe_encoder(model)), x, PLANS[plan])
    assert apart(found, model.encode(x).latent_dist.parameters) < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_which_biases_stay(family: str) -> None:
    """No convolution adds a bias inside a residual block or before one, whose shortcut is a matrix product."""
    for describe in (describe_decoder, describe_encoder):
        before = describe(FAMILIES[family]())
        assert before is not None
        stages = with_late_biases(before).stages
        for stage, following in pairwise(stages):
            if isinstance(stage, Residual):
                assert all(layer.bias is None for layer in layers_of(stage))
                assert stage.bias is not None
            elif isinstance(following, Residual) and isinstance(stage, Upsample | Downsample):
                assert stage.bias is None
        assert stages[-1] == before.stages[-1]


def test_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs, and cards without Triton, keep the biases in their convolutions."""
    monkeypatch.setattr(late_biases, "has_triton", lambda device: device.type == "cuda")
    assert [pays(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [False, True, False]
    monkeypatch.setattr(late_biases, "has_triton", lambda device: False)
    assert not pays(torch.device("cuda"))
