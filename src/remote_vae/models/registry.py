"""The table of models: name and aliases -> where the weights are, which recipe, which precision. Rows, not branches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from remote_vae.core.recipe import Recipe
from remote_vae.errors import ConfigurationError
from remote_vae.models.recipes import RECIPES

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
_NO_QUANT: Final[Mapping[str, object]] = {"use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": False}


@dataclass(frozen=True, slots=True)
class Row:
    """A model that is known by name.

    `config` is the true architecture, for `--random-weights`. `dtype` is the precision on a GPU, as the family's
    own examples have it; `honours_force_upcast` says whether its pipelines decode in float32 when the weights
    are float16 and their config says force_upcast.
    """

    name: str
    aliases: tuple[str, ...]
    repository: str | None  # None: the weights come with the package
    subfolder: str | None
    recipe: str
    cls: str
    config: Mapping[str, object]
    dtype: str
    honours_force_upcast: bool = False


_ROWS: Final = (
    Row("demo", (), None, None, "sd3", "AutoencoderKL", {}, "float32"),
    Row(
        "sd1",
        ("sd15", "sd2", "sd1.5", "sd2.1", "pixart-alpha", "dit", "lcm"),
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "vae",
        "sd1",
        "AutoencoderKL",
        {**_SD, "sample_size": 512, "scaling_factor": 0.18215},
        "float16",
    ),
    Row(
        "sdxl",
        ("pixart-sigma", "kolors", "auraflow", "hunyuandit", "omnigen", "lumina"),
        "stabilityai/stable-diffusion-xl-base-1.0",
        "vae",
        "sdxl",
        "AutoencoderKL",
        {**_SD, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        "float16",
        honours_force_upcast=True,
    ),
    Row(
        "playground",
        ("playground-v2.5",),
        "playgroundai/playground-v2.5-1024px-aesthetic",
        "vae",
        "sdxl",
        "AutoencoderKL",
        {
            **_SD,
            "sample_size": 1024,
            "scaling_factor": 0.5,
            "force_upcast": True,
            "latents_mean": (-1.6574, 1.886, -1.383, 2.5155),
            "latents_std": (8.4927, 5.9022, 6.5498, 5.2299),
        },
        "float16",
        honours_force_upcast=True,
    ),
    Row(
        "sd3",
        ("sd3.5",),
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "vae",
        "sd3",
        "AutoencoderKL",
        {
            **_SD,
            **_NO_QUANT,
            "latent_channels": 16,
            "sample_size": 1024,
            "scaling_factor": 1.5305,
            "shift_factor": 0.0609,
        },
        "float16",
    ),
    Row(
        "flux1",
        ("flux", "flux-dev", "flux-schnell", "flux-kontext", "chroma", "hidream", "z-image", "lumina2", "ovis-image"),
        "black-forest-labs/FLUX.1-schnell",
        "vae",
        "flux1",
        "AutoencoderKL",
        {
            **_SD,
            **_NO_QUANT,
            "latent_channels": 16,
            "sample_size": 1024,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
        },
        "bfloat16",
    ),
    Row(
        "flux2",
        ("flux2-dev", "flux.2"),
        "black-forest-labs/FLUX.2-dev",
        "vae",
        "flux2",
        "AutoencoderKLFlux2",
        {},
        "bfloat16",
    ),
    Row(
        "flux2-klein",
        ("flux.2-klein",),
        "black-forest-labs/FLUX.2-klein-base-9B",
        "vae",
        "flux2-klein",
        "AutoencoderKLFlux2",
        {},
        "bfloat16",
    ),
    Row(
        "cogview4",
        ("cogview3-plus",),
        "THUDM/CogView4-6B",
        "vae",
        "sd1",
        "AutoencoderKL",
        {
            **_SD,
            **_NO_QUANT,
            "block_out_channels": (128, 512, 1024, 1024),
            "layers_per_block": 3,
            "mid_block_add_attention": False,
            "latent_channels": 16,
            "sample_size": 1024,
            "scaling_factor": 1.0,
            "shift_factor": 0.0,
            "force_upcast": True,
        },
        "bfloat16",
    ),
    Row(
        "hunyuanvideo",
        ("hunyuan", "hunyuan-video", "hv", "framepack", "skyreels-hunyuan"),
        "hunyuanvideo-community/HunyuanVideo",
        "vae",
        "hunyuanvideo",
        "AutoencoderKLHunyuanVideo",
        {},
        "float16",
    ),
    Row("taesd", (), "madebyollin/taesd", None, "taesd", "AutoencoderTiny", {}, "float16"),
    Row("taesdxl", (), "madebyollin/taesdxl", None, "taesdxl", "AutoencoderTiny", {}, "float16"),
    Row("taesd3", (), "madebyollin/taesd3", None, "taesd3", "AutoencoderTiny", {"latent_channels": 16}, "float16"),
    Row("taef1", (), "madebyollin/taef1", None, "taef1", "AutoencoderTiny", {"latent_channels": 16}, "bfloat16"),
)
REGISTRY: Final = {row.name: row for row in _ROWS}
ALIASES: Final = {alias: row.name for row in _ROWS for alias in row.aliases}


def find_row(name: str) -> Row | None:
    """The row of a name or alias, in any case."""
    key = name.lower()
    return REGISTRY.get(ALIASES.get(key, key))


def find_recipe(name: str) -> Recipe:
    """*Raises* ConfigurationError naming the recipes that exist."""
    row = find_row(name)
    key = row.recipe if row else name
    if key not in RECIPES:
        raise ConfigurationError(f"recipe {name!r} is not known; known are {', '.join(RECIPES)}", recipe=name)
    return RECIPES[key]
