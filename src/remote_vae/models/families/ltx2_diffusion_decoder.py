"""The diffusion decoder of LTX-2.5, which makes pixels of noise with the latent as a guide; it has no encoder.

It takes the latents of LTX-2's VAE, which travel denormalised.
"""

from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import Recipe
from remote_vae.models.families.ltx import statistics_of_buffers
from remote_vae.models.family import Family, Model, frames_of_causal
from remote_vae.models.layouts import VIDEO_LAYOUTS
from remote_vae.values import Counts, Frames

if TYPE_CHECKING:
    import torch

RECIPE: Final = Recipe(
    "ltx2-diffusion-decoder", VIDEO_LAYOUTS, channels=(128,), ignores=("scaling_factor",), fps=24, ratio=32
)


def decode(module: Any, latent: "torch.Tensor", *, seed: int | None = None) -> "torch.Tensor":
    """Pixels of noise from the seed. *Source*: LTX2VideoDiffusionDecodePipeline.__call__."""
    from remote_vae.core.noise import seeded

    generator = None if latent.is_meta else seeded(seed)  # a prediction of memory needs no values
    pixels: torch.Tensor = module.decode(latent, generator=generator, return_dict=False)[0]
    return pixels


def with_plain_attention(module: Any) -> None:
    """The same attention without a compiler or a GPU's own kernel."""
    from remote_vae.models.neighbourhood_attention import NeighbourhoodAttention

    module.set_attn_processor(NeighbourhoodAttention())


def _sides(module: Any) -> tuple[Counts, Counts]:
    """Every stage needs as many cells as its windows have."""
    rows, columns = (_least(module.config, axis) for axis in (1, 2))
    return Counts(rows), Counts(columns)


def _least(config: Any, axis: int) -> int:
    strides = (stride[axis] for stride in config.decoder_upsample_strides)
    kernels: list[int] = [kernel[axis] for kernel in (*config.decoder_stage_kernels, config.decoder_stage5_kernel)]
    scales = accumulate(strides, lambda scale, stride: scale * stride, initial=1)
    return max(-(-kernel // scale) for kernel, scale in zip(kernels, scales, strict=True))


def _frames(module: Any) -> Frames:
    """The last stage works on the frames of the video, and needs as many as its windows have."""
    found = frames_of_causal(module)
    least = 1 + -(-(module.config.decoder_stage5_kernel[0] - 1) // found.group)
    return Frames(found.group, latents=Counts(least))


_MODELS: Final = (
    Model(
        "ltx2-diffusion-decoder",
        RECIPE,
        "Lightricks/LTX-2.5-Diffusers",
        "bfloat16",
        aliases=("ltx2.5-diffusion-decoder",),
        subfolder="diffusion_decoder",
    ),
)

FAMILIES: Final = (
    Family(
        "LTX2VideoDiffusionDecoderModel",
        _MODELS,
        tiles=True,
        statistics=statistics_of_buffers,
        prepare=with_plain_attention,
        decode=decode,
        encode=None,
        takes=lambda module: ("seed",),
        frames=_frames,
        sides=_sides,
    ),
)
