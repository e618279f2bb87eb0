"""Previews: tiny VAEs that take the normalised latents of another model and approximate its pictures."""

from typing import Final

from remote_vae.core.recipe import Affine, Constants, Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import IMAGE_LAYOUTS


def _preview(
    name: str, channels: int, dtype: str, scaling_factor: float, shift_factor: float | None = None, patch: int = 1
) -> Model:
    """The constants are those of the model that is previewed: a latent that has been scaled already is undone first."""
    affine = Affine(literal=Constants(scaling_factor, shift_factor))
    way = Recipe(name, IMAGE_LAYOUTS, (affine,), posterior="mode", patch=patch, channels=(channels,))
    return Model(name, way, f"madebyollin/{name}", dtype, subfolder=None, config={"latent_channels": channels})


_MODELS: Final = (
    _preview("taesd", 4, "float16", 0.18215),
    _preview("taesdxl", 4, "float16", 0.13025),
    _preview("taesd3", 16, "float16", 1.5305, 0.0609),
    _preview("taef1", 16, "bfloat16", 0.3611, 0.1159, patch=2),
)

# The class has a tiled encoder too, which knows four latent channels only.
FAMILIES: Final = (Family("AutoencoderTiny", _MODELS, deterministic=True, stages="tiny_autoencoder"),)
