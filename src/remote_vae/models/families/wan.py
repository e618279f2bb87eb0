"""The VAEs of Wan 2.1 and Wan 2.2 5B, causal in time: four frames for a latent frame after the first.

Latents are normalised by channel. The weights of Wan 2.1 are those of Wan 2.2 14B too. Models for pictures on these
weights decode a video of one frame.
"""

from dataclasses import replace
from typing import Any, Final

from remote_vae.core.recipe import Affine, Rearrange, Recipe
from remote_vae.models.family import Family, Model, Weights
from remote_vae.models.layouts import GRID, IMAGE_LAYOUTS, ONE_FRAME, UNBATCHED, VIDEO_LAYOUTS
from remote_vae.models.original_names import renamed

_BY_CHANNEL: Final = (Affine(("latents_mean", "latents_std")),)

WAN_21: Final = Recipe("wan2.1", VIDEO_LAYOUTS, _BY_CHANNEL, posterior="mode", channels=(16,), fps=16, ratio=8)
WAN_22: Final = Recipe(
    "wan2.2-5b",
    VIDEO_LAYOUTS,
    _BY_CHANNEL,
    posterior="mode",
    channels=(48,),
    needs=("latents_mean", "latents_std"),  # the defaults of the class are those of Wan 2.1
    fps=24,
    ratio=16,
)
SKYREELS: Final = replace(WAN_21, name="skyreels-v2", fps=24)
# These take a sample when they encode.
HELIOS: Final = replace(WAN_21, name="helios", posterior="sample", fps=24)
COSMOS: Final = replace(WAN_21, name="cosmos-predict2", posterior="sample")

_ONE_FRAME_BY_CHANNEL: Final = (*_BY_CHANNEL, Rearrange("b c h w -> b c 1 h w"))
JOYIMAGE: Final = Recipe(
    "joyimage", (GRID, UNBATCHED, ONE_FRAME), _ONE_FRAME_BY_CHANNEL, patch=2, channels=(16,), ratio=8
)
# Its pipeline hands out padded tokens, which no layout can tell; its decodes are of one frame.
JOYIMAGE_PLUS: Final = replace(JOYIMAGE, name="joyimage-edit-plus", posterior="mode")
COSMOS_PICTURES: Final = replace(JOYIMAGE, name="cosmos-predict2-text2image")
# Tokens are single cells, or patches if the pipeline was asked for them.
FIBO: Final = replace(
    WAN_22,
    name="fibo",
    layouts=(*IMAGE_LAYOUTS, Rearrange("b (h w) c -> b c h w"), ONE_FRAME),
    ops=_ONE_FRAME_BY_CHANNEL,
    fps=10,
)


# fmt: off
MEAN_22: Final = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.157, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.052, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
STD_22: Final = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885,
    0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338,
    0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458,
    1.6887, 0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on


# Wan 2.2's own code, which nests the blocks of a level; the converter of diffusers does not know these names.
_ORIGINAL_22: Final = (
    (r"^conv1", "quant_conv"),
    (r"^conv2", "post_quant_conv"),
    (r"^(encoder|decoder)\.conv1", r"\1.conv_in"),
    (r"\bmiddle\.1", "mid_block.attentions.0"),
    (r"\bmiddle\.0", "mid_block.resnets.0"),
    (r"\bmiddle\.2", "mid_block.resnets.1"),
    (r"\b(down|up)samples\.(\d+)\.\1samples\.\d+\.(resample|time_conv)", r"\1_blocks.\2.\1sampler.\3"),
    (r"\b(down|up)samples\.(\d+)\.\1samples\.(\d+)", r"\1_blocks.\2.resnets.\3"),
    (r"\bresidual\.0", "norm1"),
    (r"\bresidual\.2", "conv1"),
    (r"\bresidual\.3", "norm2"),
    (r"\bresidual\.6", "conv2"),
    (r"\bshortcut", "conv_shortcut"),
    (r"\bhead\.0", "norm_out"),
    (r"\bhead\.2", "conv_out"),
)


def from_original_names(weights: Weights, module: Any) -> Weights:
    """The tensors of a file with the names of Wan's own code, of 2.1 by the converter of diffusers."""
    if "decoder.middle.0.residual.0.gamma" not in weights:
        return weights
    if "decoder.upsamples.0.upsamples.0.residual.0.gamma" in weights:
        return renamed(weights, _ORIGINAL_22)
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    converted: Weights = convert_wan_vae_to_diffusers(dict(weights))
    return converted


_WAN_22_CONFIG: Final = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "scale_factor_temporal": 4,
    "latents_mean": MEAN_22,
    "latents_std": STD_22,
}

_MODELS: Final = (
    Model(
        "wan2.1",
        WAN_21,
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "float32",
        aliases=(
            *("wan", "wan2.1-14b", "wan2.2", "wan2.2-14b", "wan-vace", "wan-animate", "fastwan", "longlive"),
            *("anyflow", "chronoedit", "cosmos-predict2.5"),
        ),
        preview="taew2.1",
    ),
    Model("skyreels-v2", SKYREELS, "Skywork/SkyReels-V2-T2V-14B-720P-Diffusers", "float32", preview="taew2.1"),
    Model("sana-video", WAN_21, "Efficient-Large-Model/SANA-Video_2B_480p_diffusers", "float32", preview="taew2.1"),
    Model("helios", HELIOS, "BestWishYsh/Helios-Base", "float32", preview="taew2.1"),
    Model("motif-video", HELIOS, "Motif-Technologies/Motif-Video-2B", "bfloat16", preview="taew2.1"),
    Model(
        "cosmos-predict2",
        COSMOS,
        "nvidia/Cosmos-Predict2-2B-Video2World",
        "bfloat16",
        aliases=("cosmos-transfer2.5",),
        preview="taew2.1",
    ),
    Model(
        "cosmos-predict2-text2image",
        COSMOS_PICTURES,
        "nvidia/Cosmos-Predict2-2B-Text2Image",
        "bfloat16",
        preview="taew2.1-image",
    ),
    Model(
        "joyimage",
        JOYIMAGE,
        "jdopensource/JoyAI-Image-Edit-Diffusers",
        "bfloat16",
        aliases=("joyimage-edit",),
        preview="taew2.1-image",
    ),
    Model(
        "joyimage-edit-plus",
        JOYIMAGE_PLUS,
        "jdopensource/JoyAI-Image-Edit-Plus-Diffusers",
        "bfloat16",
        preview="taew2.1-image",
    ),
    Model(
        "wan2.2-5b",
        WAN_22,
        "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        "float32",
        aliases=("wan2.2-ti2v-5b", "fastwan2.2", "lucy-edit", "cosmos3"),
        config=_WAN_22_CONFIG,
        preview="taew2.2",
    ),
    Model(
        "fibo", FIBO, "briaai/FIBO", "bfloat16", aliases=("fibo-edit",), config=_WAN_22_CONFIG, preview="taew2.2-image"
    ),
)

FAMILIES: Final = (
    Family(
        "AutoencoderKLWan",
        _MODELS,
        stages="causal",
        whole_groups=True,
        convert=from_original_names,
        forget=lambda module: module.clear_cache(),  # two frames of each convolution
    ),
)
