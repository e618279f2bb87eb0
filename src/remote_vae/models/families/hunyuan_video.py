"""The VAEs of HunyuanVideo and HunyuanVideo 1.5, causal in time: four frames for a latent frame after the first.

Kandinsky 5 and 6 have the class and the factor of HunyuanVideo, with weights that were published again.
"""

from dataclasses import replace
from typing import Final

from remote_vae.core.recipe import Affine, Rearrange, Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import UNBATCHED_VIDEO, VIDEO, VIDEO_LAYOUTS
from remote_vae.models.original_names import LATENT_DIFFUSION, from_latent_diffusion, renamed

HUNYUANVIDEO: Final = Recipe("hunyuanvideo", VIDEO_LAYOUTS, (Affine(("scaling_factor",)),), posterior="mode", fps=24)
KANDINSKY6: Final = replace(HUNYUANVIDEO, name="kandinsky6", posterior="sample", patch=2)
# What the pipelines of Kandinsky 5 hand out has its channels last. That layout comes first, because 16 latent frames
# are a usual length, and a video that is 16 cells wide is not.
KANDINSKY5_VIDEO: Final = replace(
    KANDINSKY6,
    name="kandinsky5-video",
    layouts=(Rearrange("b f h w c -> b c f h w"), VIDEO, Rearrange("f h w c -> 1 c f h w"), UNBATCHED_VIDEO),
)

_MODELS: Final = (
    Model(
        "hunyuanvideo",
        HUNYUANVIDEO,
        "hunyuanvideo-community/HunyuanVideo",
        "float16",
        aliases=("hunyuan", "hunyuan-video", "hv", "framepack", "skyreels-hunyuan"),
        preview="taehv",
    ),
    Model(
        "kandinsky5-video",
        KANDINSKY5_VIDEO,
        "kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers",
        "bfloat16",
        aliases=("kandinsky5-t2v", "kandinsky5-i2v"),
        preview="taehv-kandinsky5",
    ),
    Model("kandinsky6", KANDINSKY6, "kandinskylab/Kandinsky-6.0-Pro-distill-5s-Diffusers", "bfloat16", preview="taehv"),
)

# 32 channels, one latent cell for 16 by 16 pixels.
_MODELS_15: Final = (
    Model(
        "hunyuanvideo-1.5",
        replace(HUNYUANVIDEO, name="hunyuanvideo-1.5"),
        "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
        "bfloat16",
        aliases=("hunyuanvideo1.5",),
        preview="taehv1.5",
    ),
)

# HunyuanVideo's own code has diffusers' names; programs that save its VAE give it those of latent diffusion.
FAMILIES: Final = (
    Family(
        "AutoencoderKLHunyuanVideo",
        _MODELS,
        stages="hunyuan_video",
        tiles=True,
        convert=lambda weights, module: from_latent_diffusion(weights),
    ),
    Family(
        "AutoencoderKLHunyuanVideo15",
        _MODELS_15,
        stages="hunyuan_video_15",
        whole_groups=True,
        convert=lambda weights, module: renamed(weights, LATENT_DIFFUSION),
    ),
)
