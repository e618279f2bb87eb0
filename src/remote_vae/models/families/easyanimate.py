"""The VAE of EasyAnimate, causal in time: four frames for a latent frame after the first.

Its layers keep frames from one step to the next, also after an exception.
"""

from typing import Final

from remote_vae.core.recipe import Affine, Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import VIDEO_LAYOUTS

_RECIPE: Final = Recipe(
    "easyanimate", VIDEO_LAYOUTS, (Affine(("scaling_factor",)),), posterior="mode", channels=(16,), fps=8, ratio=8
)
_MODELS: Final = (
    Model(
        "easyanimate",
        _RECIPE,
        "alibaba-pai/EasyAnimateV5.1-12b-zh",
        "bfloat16",
        aliases=("easyanimate-v5.1", "easyanimate-inp", "easyanimate-control"),
    ),
)

FAMILIES: Final = (
    Family("AutoencoderKLMagvit", _MODELS, whole_groups=True, forget=lambda module: module._clear_conv_cache()),
)
