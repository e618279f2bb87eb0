"""How large a picture a loaded model can decode, asked of the planner. Predictions for clips can take minutes."""

from bisect import bisect_right
from typing import Final

import torch

from remote_vae.core.decode import decode
from remote_vae.core.executor import RECOMPUTE, STRIPS, WHOLE, RunOptions
from remote_vae.core.layout import example_shape, fit_latent
from remote_vae.core.recipe import Recipe
from remote_vae.core.vae import VAE
from remote_vae.errors import RemoteVAEError
from remote_vae.values import Output, Scaling

PLANS: Final = (WHOLE, STRIPS, RECOMPUTE)  # those whose memory is predicted within milliseconds
SIDES: Final = (256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


class _Fits(Exception):
    """The planner has found that a picture fits; it is not decoded."""


def largest_sides(vae: VAE, recipe: Recipe, free_bytes: int | None) -> dict[str, int]:
    """The side of the largest square that each plan decodes in so many bytes; a plan that has none is left out.

    Models of videos have none.
    """
    if free_bytes is None or recipe.has_frames:
        return {}
    plans = [plan for plan in PLANS if any(way.name == plan for way in vae.decoders)]
    found = {}
    for plan in plans:
        count = bisect_right(SIDES, False, key=lambda side: not _fits(vae, recipe, plan, side, free_bytes))
        if count:
            found[plan] = SIDES[count - 1]
    if vae.device.type == "cuda":
        torch.cuda.empty_cache()  # the latents that were asked about have been on the card
    return found


def _fits(vae: VAE, recipe: Recipe, plan: str, side: int, free_bytes: int) -> bool:
    def reserve(peak_bytes: int | None) -> bool:
        raise _Fits if peak_bytes is not None else NotImplementedError

    shape = example_shape(recipe, vae.info, side // vae.info.spatial_compression_ratio)
    options = RunOptions(plan=plan, budget=lambda: free_bytes, reserve=reserve)
    try:
        fit = fit_latent(recipe, vae.info, shape, model="", height=side, width=side)
        decode(vae, recipe, torch.zeros(shape), fit=fit, scaling=Scaling(), output=Output.UINT8, options=options)
    except _Fits:
        return True
    except (RemoteVAEError, NotImplementedError, torch.OutOfMemoryError):  # too large, or no latent of this model
        return False
    raise AssertionError("the planner did not ask whether it may")
