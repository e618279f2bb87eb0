"""Stage A of Stable Cascade and Würstchen: one latent cell for 4 by 4 pixels, and pixels in [0, 1]."""

from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import Affine, PixelRange, Recipe
from remote_vae.models.family import Family, Model, decode_by_class, encode_by_class
from remote_vae.models.layouts import GRID, UNBATCHED

if TYPE_CHECKING:
    import torch

STABLE_CASCADE: Final = Recipe(
    "stable-cascade",
    (GRID, UNBATCHED),
    (Affine(("scaling_factor",)),),
    posterior="mode",
    channels=(4,),
    pixel_range=PixelRange((0.5,) * 3, (0.5,) * 3),
)


def prepare(module: Any) -> None:
    """The config has the number that latents are multiplied by; every other class has the one that divides."""
    module.register_to_config(scaling_factor=1 / module.config.scale_factor)
    module.spatial_compression_ratio = module.config.up_down_scale_factor * 2 ** (module.config.levels - 1)


def decode(module: Any, latent: "torch.Tensor") -> "torch.Tensor":
    return decode_by_class(module, latent) * 2 - 1


def encode(module: Any, pixels: "torch.Tensor") -> "torch.Tensor":
    return encode_by_class(module, pixels * 0.5 + 0.5)


_MODELS: Final = (
    Model(
        "stable-cascade",
        STABLE_CASCADE,
        "stabilityai/stable-cascade",
        "bfloat16",
        aliases=("wuerstchen",),
        subfolder="vqgan",
    ),
)

FAMILIES: Final = (
    Family(
        "PaellaVQModel",
        _MODELS,
        module="diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model",
        stages="paella",
        deterministic=True,
        prepare=prepare,
        decode=decode,
        encode=encode,
    ),
)
