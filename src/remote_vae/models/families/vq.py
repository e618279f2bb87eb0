"""Autoencoders with a codebook whose latents are floats: Kandinsky's MoVQ, and that of LDM's super-resolution.

Kandinsky's pipelines decode latents as they are; LDM's replaces each cell by the nearest entry of the codebook. Both
leave the config's factor alone.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import GRID, UNBATCHED

if TYPE_CHECKING:
    import torch

MOVQ: Final = Recipe("movq", (GRID, UNBATCHED), posterior="mode", channels=(4,), ratio=8, ignores=("scaling_factor",))
LDM: Final = replace(MOVQ, name="ldm-super-resolution", channels=(3,), ratio=4)

_MOVQ: Final[Mapping[str, object]] = {
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (128, 256, 256, 512),
    "layers_per_block": 2,
    "num_vq_embeddings": 16384,
    "vq_embed_dim": 4,
    "norm_type": "spatial",
}
_LDM: Final[Mapping[str, object]] = {
    "latent_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (128, 256, 512),
    "layers_per_block": 2,
    "num_vq_embeddings": 8192,
    "sample_size": 256,
}


def decode_as_it_is(module: Any, latent: "torch.Tensor") -> "torch.Tensor":
    """Pixels of a latent that is not replaced by entries of the codebook."""
    pixels: torch.Tensor = module.decode(latent, force_not_quantize=True, return_dict=False)[0]
    return pixels


def _kandinsky(name: str, repository: str, *aliases: str, **config: object) -> Model:
    return Model(name, MOVQ, repository, "float16", aliases=aliases, subfolder="movq", config={**_MOVQ, **config})


_KANDINSKY: Final = (
    _kandinsky("movq", "kandinsky-community/kandinsky-2-2-decoder", "kandinsky2.2"),
    _kandinsky("kandinsky2.1", "kandinsky-community/kandinsky-2-1", "kandinsky2"),
    _kandinsky("kandinsky3", "kandinsky-community/kandinsky-3", block_out_channels=(256, 512, 512, 1024)),
)
_SUPER_RESOLUTION: Final = (
    Model(
        "ldm-super-resolution",
        LDM,
        "CompVis/ldm-super-resolution-4x-openimages",
        "float32",
        subfolder="vqvae",
        config=_LDM,
    ),
)

FAMILIES: Final = (
    Family("VQModel", _KANDINSKY, stages="autoencoder_kl", deterministic=True, decode=decode_as_it_is),
    Family("VQModel", _SUPER_RESOLUTION, stages="vq", deterministic=True),
)
