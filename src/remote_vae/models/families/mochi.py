"""The VAE of Mochi 1, causal in time: six frames for a latent frame after the first."""

from typing import Final

from remote_vae.core.recipe import Affine, Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import VIDEO_LAYOUTS

_RECIPE: Final = Recipe(
    "mochi",
    VIDEO_LAYOUTS,
    (Affine(("scaling_factor", "latents_mean", "latents_std")),),
    posterior="mode",
    channels=(12,),
    fps=30,
)
_MODELS: Final = (Model("mochi", _RECIPE, "genmo/mochi-1-preview", "bfloat16", aliases=("mochi-1",)),)

FAMILIES: Final = (Family("AutoencoderKLMochi", _MODELS, stages="mochi"),)
