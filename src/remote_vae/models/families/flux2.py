"""The VAE of FLUX.2, which is normalised by channel of a patch of 2 by 2 cells; the statistics are in its weights."""

from dataclasses import replace
from typing import Any, Final

from remote_vae.core.recipe import Affine, Rearrange, Recipe
from remote_vae.models.family import Family, Model, Statistics, Weights
from remote_vae.models.layouts import GRID, PATCH, UNBATCHED
from remote_vae.models.original_names import from_latent_diffusion, renamed

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
UNPATCH: Final = Rearrange("b (c i j) h w -> b c (h i) (w j)", PATCH)

FLUX2: Final = Recipe(
    "flux2",
    PATCHED_LAYOUTS,
    (Affine(("latents_mean", "latents_std")), UNPATCH),
    posterior="mode",
    patch=2,
)
# Klein's pipelines hand out what the decoder takes.
KLEIN: Final = Recipe("flux2-klein", (GRID, UNBATCHED), posterior="mode", patch=2)


def statistics(module: Any) -> Statistics:
    """Mean and deviation of the batch norm, in the precision in which the weights hold them.

    Apple's GPUs have no double precision, so they are computed on the CPU.
    """
    norm = module.bn
    deviation = (norm.running_var.cpu().double() + norm.eps).sqrt()
    return tuple(norm.running_mean.tolist()), tuple(deviation.tolist())


def from_original_names(weights: Weights, module: Any) -> Weights:
    """The tensors of a file with the names of FLUX.2's own code, in which encoder and decoder hold the 1x1 layers."""
    outside = ((r"^encoder\.quant_conv\.", "quant_conv."), (r"^decoder\.post_quant_conv\.", "post_quant_conv."))
    return from_latent_diffusion(renamed(weights, outside))


# The cell of a patch comes before the channel.
IDEOGRAM4: Final = Recipe(
    "ideogram4",
    (
        Rearrange("b c (h i) (w j) -> b (i j c) h w", PATCH),
        Rearrange("b (h w) (i j c) -> b (i j c) h w", PATCH),
        Rearrange("c (h i) (w j) -> 1 (i j c) h w", PATCH),
    ),
    (
        Affine(("latents_mean", "latents_std")),
        Rearrange("b (i j c) h w -> b c (h i) (w j)", PATCH),
    ),
    posterior="mode",
    patch=2,
)


def with_the_pipelines_eps(module: Any) -> None:
    """ERNIE-Image's pipelines add 1e-5 to the variance, whatever the config says."""
    module.bn.eps = ERNIE_EPS
    module.register_to_config(batch_norm_eps=ERNIE_EPS)


ERNIE_EPS: Final = 1e-5
ERNIE_IMAGE: Final = replace(FLUX2, name="ernie-image")
_ERNIE_MODELS: Final = (
    Model("ernie-image", ERNIE_IMAGE, "baidu/ERNIE-Image", "bfloat16", preview="taef2"),
    Model("ernie-image-turbo", ERNIE_IMAGE, "baidu/ERNIE-Image-Turbo", "bfloat16", preview="taef2"),
)

# Cells on the wire, normalised in patches; the wire's pattern says that sides are even.
FIBO2: Final = Recipe(
    "fibo2",
    (
        Rearrange("b c (h i) (w j) -> b c (h i) (w j)", PATCH),
        Rearrange("c (h i) (w j) -> 1 c (h i) (w j)", PATCH),
    ),
    (
        Rearrange("b c (h i) (w j) -> b (c i j) h w", PATCH),
        Affine(("latents_mean", "latents_std")),
        UNPATCH,
    ),
    posterior="mode",
    patch=2,
)

_MODELS: Final = (
    Model("flux2", FLUX2, "black-forest-labs/FLUX.2-dev", "bfloat16", aliases=("flux2-dev", "flux.2"), preview="taef2"),
    Model("flux3", FLUX2, "black-forest-labs/flux-3-image-klein-base", "bfloat16"),
    # A narrower decoder for the same latents.
    Model(
        "flux2-small-decoder",
        FLUX2,
        "black-forest-labs/FLUX.2-small-decoder",
        "bfloat16",
        subfolder=None,
        config={"decoder_block_out_channels": (96, 192, 384, 384)},
        preview="taef2",
    ),
    Model(
        "flux2-klein",
        KLEIN,
        "black-forest-labs/FLUX.2-klein-base-9B",
        "bfloat16",
        aliases=("flux.2-klein",),
        preview="taef2",
    ),
    Model("ideogram4", IDEOGRAM4, "ideogram-ai/ideogram-4-fp8", "bfloat16"),
    Model("fibo2", FIBO2, "briaai/Fibo-2.0-dev", "bfloat16"),
)

# No layer computes with the batch norm, so it can stay in float32.
_FAMILY: Final = Family(
    "AutoencoderKLFlux2",
    _MODELS,
    stages="autoencoder_kl",
    tiles=True,
    float32=("bn",),
    statistics=statistics,
    convert=from_original_names,
)
FAMILIES: Final = (_FAMILY, replace(_FAMILY, models=_ERNIE_MODELS, prepare=with_the_pipelines_eps))
