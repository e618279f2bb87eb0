"""The VAE of Kandinsky 6's super-resolution, causal in time: four frames for a latent frame after the first.

It was trained on pixels that are level / 128 - 1; everybody else's are level / 127.5 - 1.
"""

from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import Affine, PixelRange, Recipe
from remote_vae.models.family import Family, Model, decode_by_class, encode_by_class
from remote_vae.models.layouts import VIDEO_LAYOUTS

if TYPE_CHECKING:
    import torch

SPAN: Final = 128 / 127.5


def decode(module: Any, latent: "torch.Tensor") -> "torch.Tensor":
    """Pixels of the usual range, in float32 as the pipeline has them."""
    return shown(decode_by_class(module, latent))


def encode(module: Any, pixels: "torch.Tensor") -> "torch.Tensor":
    """The parameters of the posterior of pixels of the usual range."""
    return encode_by_class(module, seen(pixels))


def shown(pixels: "torch.Tensor") -> "torch.Tensor":
    return ((pixels.float() + 1) * SPAN - 1).clamp(-1, 1)


def seen(pixels: "torch.Tensor") -> "torch.Tensor":
    return (pixels + 1) / SPAN - 1


_RECIPE: Final = Recipe(
    "kandinsky6-sr",
    VIDEO_LAYOUTS,
    (Affine(("scaling_factor",)),),
    posterior="mode",
    channels=(64,),
    fps=24,
    ratio=16,
    pixel_range=PixelRange((1 / SPAN,) * 3, (1 / SPAN - 1,) * 3),
)
_MODELS: Final = (
    Model("kandinsky6-sr", _RECIPE, "kandinskylab/Kandinsky-6.0-VSR-distilled2steps-5s-Diffusers", "bfloat16"),
)

FAMILIES: Final = (
    Family("Kandinsky6SRVAE", _MODELS, stages="kandinsky6_sr", whole_groups=True, decode=decode, encode=encode),
)
