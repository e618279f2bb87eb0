"""Representation autoencoders: a vision model's features as latents, and pictures of one size only.

Their code undoes scaling and statistics itself, both ways, and has pixels in [0, 1].
"""

from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import PixelRange, Recipe
from remote_vae.models.family import Family, Model, decode_by_class, encode_by_class
from remote_vae.models.layouts import GRID, UNBATCHED
from remote_vae.values import Counts

if TYPE_CHECKING:
    import torch

RAE: Final = Recipe(
    "rae",
    (GRID, UNBATCHED),
    posterior="mode",
    ignores=("scaling_factor", "latents_mean", "latents_std"),
    pixel_range=PixelRange((0.5,) * 3, (0.5,) * 3),
)


def prepare(module: Any) -> None:
    module.spatial_compression_ratio = module.decoder_patch_size


def sides(module: Any) -> tuple[Counts, Counts]:
    cells = Counts(module.decoder_image_size // module.decoder_patch_size, step=0)
    return cells, cells


def decode(module: Any, latent: "torch.Tensor") -> "torch.Tensor":
    return decode_by_class(module, latent) * 2 - 1


def encode(module: Any, pixels: "torch.Tensor") -> "torch.Tensor":
    return encode_by_class(module, pixels * 0.5 + 0.5)


def _rae(name: str, repository: str, **config: object) -> Model:
    decoder: dict[str, object] = {
        "decoder_hidden_size": 1152,
        "decoder_num_hidden_layers": 28,
        "decoder_num_attention_heads": 16,
        "decoder_intermediate_size": 4096,
    }
    return Model(name, RAE, f"nyu-visionx/{repository}", "bfloat16", subfolder=None, config={**decoder, **config})


_MODELS: Final = (
    _rae("rae", "RAE-dinov2-wReg-base-ViTXL-n08"),
    _rae("rae-512", "RAE-dinov2-wReg-base-ViTXL-n08-i512", encoder_input_size=448),
    _rae("rae-small", "RAE-dinov2-wReg-small-ViTXL-n08", encoder_hidden_size=384),
    _rae("rae-large", "RAE-dinov2-wReg-large-ViTXL-n08", encoder_hidden_size=1024, encoder_num_hidden_layers=24),
    _rae("rae-mae", "RAE-mae-base-p16-ViTXL-n08", encoder_type="mae", encoder_patch_size=16, encoder_input_size=256),
)

FAMILIES: Final = (
    Family(
        "AutoencoderRAE",
        _MODELS,
        deterministic=True,
        statistics=lambda module: (None, None),
        prepare=prepare,
        decode=decode,
        encode=encode,
        sides=sides,
        uses=("transformers",),
    ),
)
