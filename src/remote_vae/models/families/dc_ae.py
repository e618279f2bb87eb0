"""The deep compression autoencoders of Sana, with deterministic encoders: a latent cell for 32 by 32 pixels or more."""

from collections.abc import Mapping
from typing import Any, Final

from remote_vae.core.recipe import Affine, Recipe
from remote_vae.models.family import Family, Model, Weights
from remote_vae.models.layouts import GRID, UNBATCHED

SANA: Final = Recipe("sana", (GRID, UNBATCHED), (Affine(("scaling_factor",)),), posterior="mode")

_SANA_BLOCKS: Final = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
_SANA_SCALES: Final[list[list[int]]] = [[], [], [], [5], [5], [5]]
_SANA_CONFIG: Final[Mapping[str, object]] = {
    "latent_channels": 32,
    "encoder_block_types": _SANA_BLOCKS,
    "decoder_block_types": _SANA_BLOCKS,
    "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024],
    "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
    "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
    "encoder_qkv_multiscales": _SANA_SCALES,
    "decoder_qkv_multiscales": _SANA_SCALES,
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}


def _sana(name: str, repository: str, *aliases: str, subfolder: str | None = "vae") -> Model:
    return Model(name, SANA, repository, "bfloat16", aliases=aliases, subfolder=subfolder, config=_SANA_CONFIG)


def _dc_ae(name: str, channels: int, deep: int, scaling_factor: float) -> Model:
    """An autoencoder without attention to scales; `deep` is the number of its blocks after the first three."""
    blocks = ["ResBlock"] * 3 + ["EfficientViTBlock"] * deep
    widths = [128, 256, 512, 512, 1024, 1024, 2048, 2048][: 3 + deep]
    config = {
        "latent_channels": channels,
        "encoder_block_types": blocks,
        "decoder_block_types": blocks,
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "encoder_layers_per_block": [0, 4, 8] + [2] * deep,
        "decoder_layers_per_block": [0, 5, 10] + [2] * deep,
        "encoder_qkv_multiscales": [[]] * (3 + deep),
        "decoder_qkv_multiscales": [[]] * (3 + deep),
        "decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * deep,
        "decoder_act_fns": ["relu"] * 3 + ["silu"] * deep,
        "scaling_factor": scaling_factor,
    }
    return Model(name, SANA, f"mit-han-lab/{name}-1.0-diffusers", "bfloat16", subfolder=None, config=config)


_MODELS: Final = (
    _sana("sana", "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", "dc-ae-f32c32-sana-1.0"),
    # Another decoder for the same latents.
    _sana(
        "sana-1.1", "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", "dc-ae-f32c32-sana-1.1", "prx-dc-ae", subfolder=None
    ),
    _sana("sana-1.5", "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers", "sana1.5"),
    _sana("sana-sprint", "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers"),
    _dc_ae("dc-ae-f32c32-in", 32, 3, 0.3189),
    _dc_ae("dc-ae-f32c32-mix", 32, 3, 0.4552),
    _dc_ae("dc-ae-f64c128-in", 128, 4, 0.2889),
    _dc_ae("dc-ae-f64c128-mix", 128, 4, 0.4538),
    _dc_ae("dc-ae-f128c512-in", 512, 5, 0.4883),
    _dc_ae("dc-ae-f128c512-mix", 512, 5, 0.3620),
)


def from_original_names(weights: Weights, module: Any) -> Weights:
    """The tensors of a file with the names of the original code, by the converter of diffusers."""
    if "decoder.project_in.conv.weight" not in weights:
        return weights
    from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers

    converted: Weights = convert_autoencoder_dc_checkpoint_to_diffusers(dict(weights))
    return converted


FAMILIES: Final = (
    Family(
        "AutoencoderDC",
        _MODELS,
        stages="deep_compression",
        tiles=True,
        deterministic=True,
        convert=from_original_names,
        unfit_dtypes=("float16",),
    ),
)
