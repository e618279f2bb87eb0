"""The VAE of LTX-2, 2.3 and 2.5, with eight frames for a latent frame after the first; the VAE of SANA's videos too.

LTX-2's pipelines denormalise a latent before they hand it out, and normalise one that they are given, so what travels
is the decoder's own input. SANA's pipelines hand out normalised latents.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import Affine, Recipe
from remote_vae.models.families.ltx import decode_at_timestep, from_original_names, statistics_of_buffers, taken
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import VIDEO_LAYOUTS
from remote_vae.values import Counts

if TYPE_CHECKING:
    import torch

LTX2: Final = Recipe(
    "ltx2",
    VIDEO_LAYOUTS,
    posterior="mode",
    channels=(128,),
    ignores=("scaling_factor",),
    fps=24,
    ratio=32,
)
# SANA-Video's pipelines leave the factor out, and SANA-WM's do not.
SANA_VIDEO: Final = replace(LTX2, name="sana-video-720p", ops=(Affine(("latents_mean", "latents_std")),), fps=16)
SANA_WM: Final = replace(
    LTX2, name="sana-wm", ops=(Affine(("scaling_factor", "latents_mean", "latents_std")),), ignores=(), fps=16
)


def decode(module: Any, latent: "torch.Tensor", **arguments: Any) -> "torch.Tensor":
    """As LTX-Video's, but its pipelines mix the noise in before they denormalise. *Source*: LTX2Pipeline.__call__."""

    def denormalised(noise: "torch.Tensor") -> "torch.Tensor":
        mean, std = (values.view(1, -1, 1, 1, 1).to(noise) for values in (module.latents_mean, module.latents_std))
        found: torch.Tensor = noise * std / module.config.scaling_factor + mean
        return found

    return decode_at_timestep(module, latent, denormalised, **arguments)


def _sides(module: Any) -> tuple[Counts, Counts]:
    """A border that mirrors what is next to it needs a second row and a second column."""
    least = Counts(2 if module.config.decoder_spatial_padding_mode == "reflect" else 1)
    return least, least


_20: Final = {"decoder_causal": False, "spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
_23: Final = {
    **_20,
    "block_out_channels": (256, 512, 1024, 1024),
    "decoder_block_out_channels": (256, 512, 512, 1024),
    "layers_per_block": (4, 6, 4, 2, 2),
    "decoder_layers_per_block": (4, 6, 4, 2, 2),
    "decoder_spatio_temporal_scaling": (True,) * 4,
    "decoder_inject_noise": (False,) * 5,
    "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
    "upsample_residual": (False,) * 4,
    "upsample_factor": (2, 2, 1, 2),
    "decoder_spatial_padding_mode": "zeros",
}

_MODELS: Final = (
    Model("ltx2", LTX2, "Lightricks/LTX-2", "bfloat16", aliases=("ltx-2",), config=_20, preview="taeltx2"),
    Model(
        "ltx2.3", LTX2, "diffusers/LTX-2.3-Diffusers", "bfloat16", aliases=("ltx-2.3",), config=_23, preview="taeltx2.3"
    ),
    Model("ltx2.5", LTX2, "Lightricks/LTX-2.5-Diffusers", "bfloat16", aliases=("ltx-2.5",), config=_23),
    Model(
        "sana-video-720p",
        SANA_VIDEO,
        "Efficient-Large-Model/SANA-Video_2B_720p_diffusers",
        "float32",
        config=_20,
        preview="taeltx2",
    ),
    Model(
        "sana-wm",
        SANA_WM,
        "Efficient-Large-Model/SANA-WM_bidirectional-diffusers",
        "bfloat16",
        config=_20,
        preview="taeltx2",
    ),
)

FAMILIES: Final = (
    Family(
        "AutoencoderKLLTX2Video",
        _MODELS,
        stages="ltx",
        tiles=True,
        whole_groups=True,
        statistics=statistics_of_buffers,
        convert=from_original_names,
        decode=decode,
        takes=taken,
        sides=_sides,
    ),
)
