"""Models that run by their own code alone: what a picture takes is predicted, and one that does not fit is refused."""

from typing import Any

import pytest
import torch

from remote_vae.core.decode import decode
from remote_vae.core.executor import RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.errors import TooLarge
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Scaling

from .cases import CASES
from .test_pipelines_pictures import consistency_decoder

MODULES = {"consistency-decoder": consistency_decoder, "rae": CASES["rae"].module}
LATENTS = {"consistency-decoder": (1, 4, 16, 12), "rae": CASES["rae"].latents[0]}


@pytest.fixture(params=MODULES)
def vae(request: pytest.FixtureRequest) -> tuple[str, DiffusersVAE]:
    torch.manual_seed(7)
    module, family = MODULES[request.param]().eval(), family_of(MODELS[request.param])
    family.prepare(module)
    return request.param, DiffusersVAE(module, source="m", revision="", family=family)


def test_a_decode(vae: tuple[str, DiffusersVAE]) -> None:
    """What is predicted is what it takes or a little more; with less it is refused, with both numbers."""
    name, model = vae
    z = torch.randn(LATENTS[name])
    fit = fit_latent(MODELS[name].recipe, model.info, tuple(z.shape), model=name, height=None, width=None)

    def run(budget: int) -> Any:
        options = RunOptions(budget=lambda: budget)
        return decode(model, MODELS[name].recipe, z, fit=fit, scaling=Scaling(), output=Output.RAW, options=options)

    run(2**40)  # which predicts, on a copy
    with LiveBytes() as live:
        found = run(2**40)
    assert (found.plan, model.info.plans) == ("whole", ("whole",))
    assert -0.15 < found.peak_bytes / live.peak - 1 < 0.3
    with pytest.raises(TooLarge, match=r"needs \d+ MB of memory with plan whole; \d+ MB are free"):
        run(found.peak_bytes - 1)
