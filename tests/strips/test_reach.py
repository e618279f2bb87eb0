"""How large a picture the server says it can decode."""

from collections.abc import Sequence

import pytest
import torch

from remote_vae.core.decode import decode
from remote_vae.core.executor import RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.engine.reach import SIDES, largest_sides
from remote_vae.errors import TooLarge
from remote_vae.models.families import family_of, find_model
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Scaling

from .models import small


class _Would(Exception):
    pass


def would_run(vae: DiffusersVAE, plan: str, side: int, budget: int) -> bool:
    def reserve(peak: int | None) -> bool:
        raise _Would

    model = find_model("sd1")
    assert model is not None
    shape: Sequence[int] = (1, 4, side // 4, side // 4)
    fit = fit_latent(model.recipe, vae.info, tuple(shape), model="", height=None, width=None)
    options = RunOptions(plan, lambda: budget, reserve=reserve)
    try:
        decode(vae, model.recipe, torch.zeros(shape), fit=fit, scaling=Scaling(), output=Output.UINT8, options=options)
    except (_Would, TooLarge) as exc:
        return isinstance(exc, _Would)
    raise AssertionError


@pytest.mark.parametrize("budget", [10**7, 2 * 10**8])
def test_the_largest_side_is_the_planners(budget: int) -> None:
    """The side that is told fits by the planner's own judgement, and the next one does not."""
    model = find_model("sd1")
    assert model is not None
    vae = DiffusersVAE(small(), source="", revision="", family=family_of(model))
    found = largest_sides(vae, model.recipe, budget)
    assert {"whole", "strips", "strips-recompute"} >= found.keys()
    for plan in ("whole", "strips", "strips-recompute"):
        fitting = [side for side in SIDES if would_run(vae, plan, side, budget)]
        assert found.get(plan) == (fitting[-1] if fitting else None)
    assert found["strips-recompute"] > found.get("whole", 0)
    assert largest_sides(vae, model.recipe, None) == largest_sides(vae, model.recipe, 1) == {}
