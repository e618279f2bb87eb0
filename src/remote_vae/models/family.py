"""What is known of a family of VAEs, as one value. Each module of `families` defines one or several."""

import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import Affine, Constants, Recipe
from remote_vae.core.vae_info import VAEInfo
from remote_vae.values import ANY_NUMBER, RGB, Counts, Frames

if TYPE_CHECKING:
    import torch

    from remote_vae.core.pieces import Piecewise

Statistics = tuple[tuple[float, ...] | None, tuple[float, ...] | None]
Weights = dict[str, "torch.Tensor"]
FACTORS: Final = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")

CHANNELS: Final = ("latent_channels", "z_dim", "z_channels", "encoder_hidden_size")


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is known by name. Its aliases are names of models that have the same weights.

    `repository` is None if the weights have no folder on the Hub: `file` is then the address of the file in which they
    are published, or None if they come with the package. `config` is the true architecture, for single files and
    random weights; it is None if it is not known here. `dtype` is the precision on a GPU in the family's own examples.
    If `honours_force_upcast`, the pipelines decode in float32 when the weights are float16 and their config says
    force_upcast. `preview` is the small model that approximates this one.
    """

    name: str
    recipe: Recipe
    repository: str | None
    dtype: str
    aliases: tuple[str, ...] = ()
    subfolder: str | None = "vae"
    config: Mapping[str, object] | None = field(default_factory=dict)
    honours_force_upcast: bool = False
    preview: str | None = None
    file: str | None = None

    @property
    def embedded(self) -> bool:
        """Whether the weights come with the package."""
        return self.repository is None and self.file is None


def statistics_of_config(module: Any) -> Statistics:
    """The mean and the standard deviation of each latent channel, if the module's config has them."""
    return _numbers(getattr(module.config, "latents_mean", None)), _numbers(getattr(module.config, "latents_std", None))


def decode_by_class(module: Any, latent: "torch.Tensor") -> "torch.Tensor":
    """Pixels by the `decode` that most classes have."""
    pixels: torch.Tensor = module.decode(latent, return_dict=False)[0]
    return pixels


def encode_by_class(module: Any, pixels: "torch.Tensor") -> "torch.Tensor":
    """The parameters of the posterior, or the latent itself if the class gives no distribution."""
    found = module.encode(pixels, return_dict=False)[0]
    moments: torch.Tensor = getattr(found, "parameters", found)
    return moments


def frames_of_causal(module: Any) -> Frames:
    """The rule of causal video VAEs, and for a VAE of pictures one frame for each."""
    for place in (module.config, module):
        stated = getattr(place, "temporal_compression_ratio", None) or getattr(place, "scale_factor_temporal", None)
        if stated is not None:
            return Frames(group=int(stated))
    return Frames()


@dataclass(frozen=True, slots=True)
class Family:
    """VAEs of one class that share their facts; `cls` is the name of the class.

    `stages`: the module of `remote_vae.models.stages` that describes its layers, if exact strips or blocks can run
    them. `tiles`: its own tiled methods work both ways.
    `deterministic`: its encoder gives a latent and not a distribution.
    `frames_first`: the class decodes to frames before channels, which its pipeline expects and `decode` undoes.
    `whole_groups`: its encoder takes no frames beyond the last whole group. `float32` names the parts, at any depth,
    that keep this precision whatever the rest has. `statistics` reads mean and deviation by channel from a loaded
    module. `convert` renames the tensors of a file that has the names of the original code. `prepare` sets what the
    family's pipelines set on a loaded module. `decode` and `encode` run the module, for classes that are not called as
    most are; pixels are in [-1, 1], whatever range the module itself has.
    Without `encode` there is no encoder.
    `decode_pieces` and `encode_pieces` do the same to one video at a time, piece by piece, with less memory.
    `takes` reads from a loaded module which options of a request go to its `decode`, by name, if they are given.
    `frames` reads from a loaded module how many frames it makes of a latent. `forget` drops what the module's own code
    keeps between its steps, which a cancelled call would leave behind. `module` is where Python finds the class.
    `pixel_channels` reads from a config the channels of its pictures. `sides` reads from a loaded module how many rows
    and columns of latent cells it takes. `unfit_dtypes` are precisions in which the weights overflow.
    `uses` are packages that the class needs and most classes do without.
    """

    cls: str
    models: tuple[Model, ...]
    stages: str = ""
    tiles: bool = False
    deterministic: bool = False
    frames_first: bool = False
    whole_groups: bool = False
    float32: tuple[str, ...] = ()
    pixel_channels: Callable[[Mapping[str, Any]], int] = lambda config: RGB
    statistics: Callable[[Any], Statistics] = statistics_of_config
    convert: Callable[[Weights, Any], Weights] = lambda weights, module: weights
    prepare: Callable[[Any], None] = lambda module: None
    decode: Callable[..., "torch.Tensor"] = decode_by_class
    takes: Callable[[Any], tuple[str, ...]] = lambda module: ()
    encode: Callable[[Any, "torch.Tensor"], "torch.Tensor"] | None = encode_by_class
    decode_pieces: "Piecewise | None" = None
    encode_pieces: "Piecewise | None" = None
    frames: Callable[[Any], Frames] = frames_of_causal
    forget: Callable[[Any], None] = lambda module: None
    unfit_dtypes: tuple[str, ...] = ()
    module: str = "diffusers"
    sides: Callable[[Any], tuple[Counts, Counts]] = lambda module: (ANY_NUMBER, ANY_NUMBER)
    uses: tuple[str, ...] = ()

    def lacks(self) -> str:
        """A package that the class uses and that is not installed; empty if there is none."""
        return next((package for package in self.uses if importlib.util.find_spec(package) is None), "")

    def load_class(self) -> Any:
        """The class itself; this imports the module that defines it."""
        return getattr(importlib.import_module(self.module), self.cls)

    def read_info(self, module: Any, *, plans: tuple[str, ...], executor: str, source: str, revision: str) -> VAEInfo:
        """The facts of a loaded module, from its config, its attributes and its buffers."""
        config = module.config
        mean, std = self.statistics(module)
        frames, (rows, columns) = self.frames(module), self.sides(module)
        return VAEInfo(
            latent_channels=channels_of(config),
            spatial_compression_ratio=_spatial_ratio(config) or int(module.spatial_compression_ratio),
            frames=replace(frames, whole=frames.whole or self.whole_groups),
            constants=Constants(
                scaling_factor=_number(getattr(config, "scaling_factor", None)),
                shift_factor=_number(getattr(config, "shift_factor", None)),
                latents_mean=mean,
                latents_std=std,
            ),
            dtype=str(next(module.parameters()).dtype).removeprefix("torch."),
            deterministic=self.deterministic,
            encodes=self.encode is not None,
            frames_first=self.frames_first,
            takes=self.takes(module),
            pixel_channels=self.pixel_channels(config),
            rows=rows,
            columns=columns,
            plans=plans,
            executor=executor,
            weight_bytes=sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers())),
            source=source,
            revision=revision,
            config=_plain(module),
        )


def misfit(family: Family, recipe: Recipe, config: Mapping[str, object]) -> str:
    """Why weights of a family with this config would give wrong pixels under a recipe; empty if they would not."""
    stated = any(name in config for name in CHANNELS)
    if recipe.channels and stated and channels_of(config) not in recipe.channels:
        expected = " or ".join(map(str, recipe.channels))
        return f"it is for {expected} latent channels, and these weights have {channels_of(config)}"
    ratio = _spatial_ratio(config)
    if recipe.ratio and ratio not in (None, recipe.ratio):
        return f"it is for {recipe.ratio} pixels to a side of a latent cell, and these weights have {ratio}"
    channels = family.pixel_channels(config)
    if channels != recipe.pixel_channels:
        return f"it is for pictures of {recipe.pixel_channels} channels, and those of these weights have {channels}"
    lacking = [name for name in recipe.needs if not config.get(name)]
    if lacking:
        return f"it needs {' and '.join(lacking)}, which the config of these weights does not have"
    used = {name for op in recipe.ops if isinstance(op, Affine) for name in op.uses}
    unused = [name for name in stated_constants(config) if name not in used and name not in recipe.ignores]
    return f"it does not use the {' and '.join(unused)} of these weights" if unused else ""


def channels_of(config: Mapping[str, object]) -> int:
    """Latent channels, by the names that the classes of diffusers give them."""
    return int(str(next(config[name] for name in CHANNELS if name in config)))


def stated_constants(config: Mapping[str, object]) -> list[str]:
    """The constants in a config that change a latent."""
    factors = (("scaling_factor", 1), ("shift_factor", 0))
    found = [name for name, neutral in factors if config.get(name) not in (None, neutral)]
    both = config.get("latents_mean") is not None and config.get("latents_std") is not None
    return [*found, "latents_mean", "latents_std"] if both else found


def _spatial_ratio(config: Mapping[str, object]) -> int | None:
    """Pixels per latent cell and side, if the config has them."""
    for name in ("spatial_compression_ratio", "scale_factor_spatial"):
        if name in config:  # None says that the module computes it, by a rule of its class
            return None if config[name] is None else int(str(config[name]))
    factors = config.get("spatial_downsample_factors")  # of each level, some of which may keep the size
    if isinstance(factors, list | tuple):
        return math.prod(factors)
    levels = config.get("spatial_ds")  # those that halve the size; if there is no such list, all but the last one
    if isinstance(levels, list | tuple):
        return 1 << len(levels)
    blocks = config.get("decoder_block_out_channels") or config.get("block_out_channels") or config.get("ch_mult")
    return 1 << len(blocks) - 1 if isinstance(blocks, list | tuple) else None


def _plain(module: Any) -> dict[str, object]:
    """The config as JSON values, with the name of the class and without the private keys of diffusers."""
    config = dict(module.config)
    shown = {"_class_name": type(module).__name__, **{key: config[key] for key in config if not key.startswith("_")}}
    plain: dict[str, object] = json.loads(json.dumps(shown))
    return plain


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _numbers(values: object) -> tuple[float, ...] | None:
    return tuple(float(value) for value in values) if isinstance(values, list | tuple) else None
