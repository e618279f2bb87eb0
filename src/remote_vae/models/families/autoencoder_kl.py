"""The VAE of Stable Diffusion 1 to 3, SDXL, FLUX.1 and many others: one class, several constants."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from remote_vae.core.recipe import Affine, Rearrange, Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import FRAMES, GRID, IMAGE_LAYOUTS, UNBATCHED, VIDEO
from remote_vae.models.original_names import from_latent_diffusion

_SD: Final[Mapping[str, object]] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
}
SIXTEEN_CHANNELS: Final[Mapping[str, object]] = {
    **_SD,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "force_upcast": False,
    "latent_channels": 16,
    "sample_size": 1024,
}
_SD1_CONFIG: Final = {**_SD, "sample_size": 512, "scaling_factor": 0.18215}
_SDXL_CONFIG: Final = {**_SD, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True}
_FLUX1_CONFIG: Final = {**SIXTEEN_CHANNELS, "scaling_factor": 0.3611, "shift_factor": 0.1159}
_COGVIEW: Final[Mapping[str, object]] = {
    **SIXTEEN_CHANNELS,
    "block_out_channels": (128, 512, 1024, 1024),
    "layers_per_block": 3,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "force_upcast": True,
}
# fmt: off
_GLM_IMAGE: Final[Mapping[str, object]] = {
    **_COGVIEW,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": (
        -0.2080078125, 1.875, -0.470703125, -1.265625, -1.421875, 0.77734375, -0.3671875, -0.9453125, 0.318359375,
        0.7734375, -0.1884765625, -0.022216796875, -0.220703125, -1.59375, -0.81640625, -0.255859375,
    ),
    "latents_std": (
        3.0625, 2.203125, 2.265625, 4.84375, 2.5, 3.9375, 2.203125, 3.03125, 2.1875, 2.046875, 2.71875, 2.390625,
        2.390625, 2.453125, 2.25, 2.15625,
    ),
}
# fmt: on

SD1: Final = Recipe("sd1", IMAGE_LAYOUTS, (Affine(("scaling_factor",)),))
SDXL: Final = Recipe("sdxl", IMAGE_LAYOUTS, (Affine(("scaling_factor", "latents_mean", "latents_std")),), channels=(4,))
SD3: Final = Recipe("sd3", IMAGE_LAYOUTS, (Affine(("scaling_factor", "shift_factor")),))
FLUX1: Final = replace(SD3, name="flux1", patch=2)
# Mean and deviation by channel and no factor, although the class has one by default.
GLM_IMAGE: Final = Recipe(
    "glm-image",
    (GRID, UNBATCHED),
    (Affine(("latents_mean", "latents_std")),),
    posterior="mode",
    patch=4,
    ignores=("scaling_factor", "shift_factor"),
    needs=("latents_mean", "latents_std"),
)
# Latents with channels last; the shift of the config is not used.
KANDINSKY5: Final = Recipe(
    "kandinsky5-image",
    (GRID, Rearrange("b 1 h w c -> b c h w"), UNBATCHED),
    (Affine(("scaling_factor",)),),
    patch=2,
    ignores=("shift_factor",),
)
# Videos of models for pictures: each frame is a picture.
_FRAMES: Final = Rearrange("b c f h w -> (b f) c h w")
ANIMATEDIFF: Final = Recipe("animatediff", (VIDEO, FRAMES), (*SD1.ops, _FRAMES), fps=8)
COGVIEW4: Final = replace(SD1, ignores=("shift_factor",))


_MODELS: Final = (
    Model(
        "sd1",
        SD1,
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "float16",
        aliases=("sd15", "sd1.5"),
        config=_SD1_CONFIG,
        preview="taesd",
    ),
    # Decoders of their own for the same latents.
    Model(
        "sd2",
        SD1,
        "stabilityai/stable-diffusion-2-1",
        "float16",
        aliases=("sd2.1",),
        config=_SD1_CONFIG,
        preview="taesd",
    ),
    Model(
        "pixart-alpha", SD1, "PixArt-alpha/PixArt-XL-2-1024-MS", "float16", config=_SD1_CONFIG, preview="taesd"
    ),
    Model("dit", SD1, "facebook/DiT-XL-2-256", "float16", config=_SD1_CONFIG, preview="taesd"),
    Model("lcm", SD1, "SimianLuo/LCM_Dreamshaper_v7", "float16", config=_SD1_CONFIG, preview="taesd"),
    Model(
        "sdxl",
        SDXL,
        "stabilityai/stable-diffusion-xl-base-1.0",
        "float16",
        aliases=("pixart-sigma", "kolors", "auraflow", "omnigen", "lumina"),
        config=_SDXL_CONFIG,
        honours_force_upcast=True,
        preview="taesdxl",
    ),
    # SDXL's VAE with weights that do not overflow float16.
    Model(
        "hunyuandit",
        SDXL,
        "Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers",
        "float16",
        config=_SDXL_CONFIG,
        honours_force_upcast=True,
        preview="taesdxl",
    ),
    Model(
        "playground",
        SDXL,
        "playgroundai/playground-v2.5-1024px-aesthetic",
        "float16",
        aliases=("playground-v2.5",),
        config={
            **_SDXL_CONFIG,
            "scaling_factor": 0.5,
            "latents_mean": (-1.6574, 1.886, -1.383, 2.5155),
            "latents_std": (8.4927, 5.9022, 6.5498, 5.2299),
        },
        honours_force_upcast=True,
    ),
    Model(
        "sd3",
        SD3,
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "float16",
        aliases=("sd3.5",),
        config={**SIXTEEN_CHANNELS, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        preview="taesd3",
    ),
    Model(
        "flux1",
        FLUX1,
        "black-forest-labs/FLUX.1-schnell",
        "bfloat16",
        aliases=(
            "flux", "flux-dev", "flux-schnell", "flux-kontext", "chroma", "hidream", "z-image", "lumina2", "ovis-image",
        ),
        config=_FLUX1_CONFIG,
        preview="taef1",
    ),
    Model("cogview4", COGVIEW4, "THUDM/CogView4-6B", "bfloat16", config=_COGVIEW),
    Model("cogview3-plus", COGVIEW4, "THUDM/CogView3-Plus-3B", "bfloat16", config=_COGVIEW),
    Model("glm-image", GLM_IMAGE, "zai-org/GLM-Image", "bfloat16", config=_GLM_IMAGE),
    Model(
        "kandinsky5-image",
        KANDINSKY5,
        "kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers",
        "bfloat16",
        aliases=("kandinsky5",),
        config=_FLUX1_CONFIG,
    ),
    # FLUX.1's patches of four channels; there is no shift.
    Model(
        "bria3.2",
        FLUX1,
        "briaai/BRIA-3.2",
        "float32",
        config={**_SDXL_CONFIG, "shift_factor": 0.0},
    ),
    Model("animatediff", ANIMATEDIFF, "stable-diffusion-v1-5/stable-diffusion-v1-5", "float16", config=_SD1_CONFIG),
    Model("latte", ANIMATEDIFF, "maxin-cn/Latte-1", "float16", config=_SD1_CONFIG),
    Model("i2vgen-xl", ANIMATEDIFF, "ali-vilab/i2vgen-xl", "float16", config=_SD1_CONFIG),
    Model("modelscope-t2v", ANIMATEDIFF, "ali-vilab/text-to-video-ms-1.7b", "float16", config=_SD1_CONFIG),
    Model(
        "animatediff-sdxl",
        ANIMATEDIFF,
        "stabilityai/stable-diffusion-xl-base-1.0",
        "float16",
        config=_SDXL_CONFIG,
        honours_force_upcast=True,
    ),
    Model("demo", SD3, None, "float32", subfolder=None),
)  # fmt: skip


def with_the_upscalers_factor(module: Any) -> None:
    """The x4 upscaler's pipeline takes this factor whatever the config says."""
    module.register_to_config(scaling_factor=UPSCALER_FACTOR)


UPSCALER_FACTOR: Final = 0.08333
_UPSCALER: Final = Model(
    "sd-x4-upscaler",
    replace(SD1, name="sd-x4-upscaler", ratio=4),
    "stabilityai/stable-diffusion-x4-upscaler",
    "float16",
    config={
        **_SD,
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (128, 256, 512),
        "scaling_factor": UPSCALER_FACTOR,
        "force_upcast": True,
    },
    honours_force_upcast=True,
)

_FAMILY: Final = Family(
    "AutoencoderKL",
    _MODELS,
    stages="autoencoder_kl",
    tiles=True,
    convert=lambda weights, module: from_latent_diffusion(weights),
)
FAMILIES: Final = (_FAMILY, replace(_FAMILY, models=(_UPSCALER,), prepare=with_the_upscalers_factor))
