"""The recipes: one row per way that latents travel. *Source*: the pipelines of diffusers 0.42.1."""

from typing import Final

from remote_vae.core.recipe import Affine, Constants, Decode, PixelAffine, Rearrange, Recipe

PATCH: Final = {"i": 2, "j": 2}
GRID: Final = Rearrange("b c h w -> b c h w")
UNBATCHED: Final = Rearrange("c h w -> 1 c h w")
PACKED: Final = Rearrange("b (h w) (c i j) -> b c (h i) (w j)", PATCH)
PACKED_EXTRA_AXIS: Final = Rearrange("1 b (h w) (c i j) -> b c (h i) (w j)", PATCH)  # one client's spelling
VIDEO: Final = Rearrange("b c f h w -> b c f h w")
UNBATCHED_VIDEO: Final = Rearrange("c f h w -> 1 c f h w")

UNPATCH: Final = Rearrange("b (c i j) h w -> b c (h i) (w j)", PATCH)

IMAGE_LAYOUTS: Final = (GRID, PACKED, UNBATCHED, PACKED_EXTRA_AXIS)
VIDEO_LAYOUTS: Final = (VIDEO, UNBATCHED_VIDEO)
# All lead to patches of 2x2 cells as channels, which is what is normalised.
PATCHED_LAYOUTS: Final = tuple(
    Rearrange(f"{wire} -> {batch} (c i j) h w", PATCH)
    for wire, batch in (
        ("b (c i j) h w", "b"),
        ("b c (h i) (w j)", "b"),
        ("b (h w) (c i j)", "b"),
        ("(c i j) h w", "1"),
        ("c (h i) (w j)", "1"),
        ("1 b (h w) (c i j)", "b"),
    )
)


def _image(name: str, affine: Affine, posterior: str = "sample", patch: int = 1) -> Recipe:
    return Recipe(name, "image", IMAGE_LAYOUTS, (affine, Decode(), PixelAffine()), posterior, patch)


def _preview(name: str, scaling_factor: float, shift_factor: float | None = None, patch: int = 1) -> Recipe:
    """A tiny VAE that works on the normalised latents of the model whose constants these are."""
    affine = Affine(literal=Constants(scaling_factor, shift_factor))
    return _image(name, affine, posterior="mode", patch=patch)


_ROWS: Final = (
    _image("sd1", Affine(("scaling_factor",))),
    _image("sdxl", Affine(("scaling_factor", "latents_mean", "latents_std"))),
    _image("sd3", Affine(("scaling_factor", "shift_factor"))),
    _image("flux1", Affine(("scaling_factor", "shift_factor")), patch=2),
    Recipe(
        "flux2",
        "image",
        PATCHED_LAYOUTS,
        (Affine(("latents_mean", "latents_std")), UNPATCH, Decode(), PixelAffine()),
        posterior="mode",
        patch=2,
    ),
    Recipe("flux2-klein", "image", (GRID, UNBATCHED), (Decode(), PixelAffine()), posterior="mode", patch=2),
    Recipe(
        "hunyuanvideo",
        "video",
        VIDEO_LAYOUTS,
        (Affine(("scaling_factor",)), Decode(), PixelAffine()),
        posterior="mode",
    ),
    _preview("taesd", 0.18215),
    _preview("taesdxl", 0.13025),
    _preview("taesd3", 1.5305, 0.0609),
    _preview("taef1", 0.3611, 0.1159, patch=2),
)
RECIPES: Final = {recipe.name: recipe for recipe in _ROWS}
