"""The VAE of Cosmos 1.0, causal in time: eight frames for a latent frame after the first.

Latents are normalised by channel and frame, for the sixteen latent frames that the statistics are for.
"""

from typing import Any, Final

from remote_vae.core.recipe import Affine, Recipe
from remote_vae.models.family import Family, Model, Statistics, channels_of, statistics_of_config
from remote_vae.models.layouts import VIDEO_LAYOUTS
from remote_vae.values import ANY_NUMBER, Counts, Frames

SIGMA_DATA: Final = 0.5  # of the schedulers that Cosmos's own converter writes


def statistics(module: Any) -> Statistics:
    """Mean and deviation of each channel in each frame, in units of the schedulers' sigma_data."""
    mean, std = statistics_of_config(module)
    if mean is None or std is None:
        channels = channels_of(module.config)
        mean, std = (0.0,) * channels, (1.0,) * channels
    return mean, tuple(value / SIGMA_DATA for value in std)


def _frames(module: Any) -> Frames:
    """The encoder repeats the first frame so that it fills a patch."""
    config = module.config
    mean, _ = statistics_of_config(module)
    most = 0 if mean is None else len(mean) // channels_of(config)
    return Frames(
        config.temporal_compression_ratio,
        latents=Counts(most=most) if most else ANY_NUMBER,
        added=config.patch_size - 1,
    )


_RECIPE: Final = Recipe(
    "cosmos",
    VIDEO_LAYOUTS,
    (Affine(("latents_mean", "latents_std")),),
    posterior="mode",
    channels=(16,),
    fps=30,
    ratio=8,
)
_MODELS: Final = (
    Model("cosmos", _RECIPE, "nvidia/Cosmos-1.0-Diffusion-7B-Text2World", "bfloat16", aliases=("cosmos-1.0",)),
)

FAMILIES: Final = (
    Family("AutoencoderKLCosmos", _MODELS, stages="cosmos", deterministic=True, statistics=statistics, frames=_frames),
)
