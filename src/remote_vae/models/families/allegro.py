"""The VAE of Allegro, which works in overlapping tiles of frames, rows and columns that must fill a video exactly.

Without tiles its class does nothing, and what lies beyond the last whole tile it leaves black.
"""

from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import Affine, Recipe
from remote_vae.models.family import Family, Model, decode_by_class
from remote_vae.models.layouts import VIDEO_LAYOUTS
from remote_vae.values import Counts, Frames

if TYPE_CHECKING:
    import torch


def _in_tiles(module: Any) -> None:
    """Without slices its class decodes no batch of several videos."""
    module.use_tiling = module.use_slicing = True


def decode(module: Any, latent: "torch.Tensor") -> "torch.Tensor":
    """Its class gives frames before channels."""
    return decode_by_class(module, latent).transpose(1, 2)


def _counts(module: Any, axis: int, ratio: int) -> Counts:
    """Latent frames, rows or columns that whole tiles make up."""
    return Counts(module.kernel[axis] // ratio, module.stride[axis] // ratio)


def _frames(module: Any) -> Frames:
    group = int(module.config.temporal_compression_ratio)
    return Frames(group, first=group, whole=True, latents=_counts(module, 0, group))


def _sides(module: Any) -> tuple[Counts, Counts]:
    ratio = module.spatial_compression_ratio
    return _counts(module, 1, ratio), _counts(module, 2, ratio)


_RECIPE: Final = Recipe(
    "allegro", VIDEO_LAYOUTS, (Affine(("scaling_factor",)),), posterior="mode", channels=(4,), fps=15, ratio=8
)
_MODELS: Final = (Model("allegro", _RECIPE, "rhymes-ai/Allegro", "float32"),)

FAMILIES: Final = (
    Family(
        "AutoencoderKLAllegro",
        _MODELS,
        frames_first=True,
        prepare=_in_tiles,
        decode=decode,
        frames=_frames,
        sides=_sides,
    ),
)
