"""The layouts in which latents travel, and the shapes of recipes that several families share.

*Source*: the pipelines of diffusers 0.42.1.
"""

from typing import Final

from remote_vae.core.recipe import Affine, Decode, PixelAffine, Rearrange, Recipe

PATCH: Final = {"i": 2, "j": 2}
GRID: Final = Rearrange("b c h w -> b c h w")
UNBATCHED: Final = Rearrange("c h w -> 1 c h w")
PACKED: Final = Rearrange("b (h w) (c i j) -> b c (h i) (w j)", PATCH)
PACKED_EXTRA_AXIS: Final = Rearrange("1 b (h w) (c i j) -> b c (h i) (w j)", PATCH)  # one client's spelling
VIDEO: Final = Rearrange("b c f h w -> b c f h w")
UNBATCHED_VIDEO: Final = Rearrange("c f h w -> 1 c f h w")

IMAGE_LAYOUTS: Final = (GRID, PACKED, UNBATCHED, PACKED_EXTRA_AXIS)
VIDEO_LAYOUTS: Final = (VIDEO, UNBATCHED_VIDEO)


def recipe(
    name: str,
    affine: Affine,
    *,
    layouts: tuple[Rearrange, ...] = IMAGE_LAYOUTS,
    posterior: str = "sample",
    patch: int = 1,
    channels: tuple[int, ...] = (),
    ignores: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
    fps: float = 10,
) -> Recipe:
    """The recipe of nearly every family: one affine map, the VAE, and pixels from [-1, 1]."""
    return Recipe(name, layouts, (affine, Decode(), PixelAffine()), posterior, patch, channels, ignores, needs, fps)
