"""A family of VAEs as data: what lies between its pipelines' latents and the VAE, as a list of operations.

Decoding runs the list forwards, encoding runs it backwards. Every VAE has pixels in [-1, 1]. *Source*: every
`vae.decode` call site of diffusers 0.42 reduces to these operations.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from remote_vae.values import RGB


@dataclass(frozen=True, slots=True)
class Constants:
    """The numbers that normalise a latent; None is "not used"."""

    scaling_factor: float | None = None
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Rearrange:
    """An einops pattern; `sizes` are axes of fixed length.

    Axes: b batch, c latent channels, f latent frames, h and w the latent grid, i and j a patch, 1 a literal,
    l layers of a picture, which become pictures of the batch: of several layers the first is their composite, which no
    pipeline shows, and it is left out.
    """

    pattern: str
    sizes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def wire(self) -> str:
        """The side that travels."""
        return self.pattern.split("->")[0].strip()

    @property
    def inverse(self) -> str:
        """The pattern that undoes this one."""
        before, after = self.pattern.split("->")
        return f"{after.strip()} -> {before.strip()}"


@dataclass(frozen=True, slots=True)
class Affine:
    """z * (std or 1) / (scaling_factor or 1) + (mean or shift_factor or 0), per channel.

    `uses` names the model's constants that take part; mean and std take part together or not at all.
    With `literal` the VAE itself works on normalised latents, as a preview that replaces another VAE does. Then a
    latent is left alone if the caller asks for scaling, and is normalised with these constants if it does not.
    `both_ways`: the family's pipelines compute the same when they encode, and not the inverse.
    """

    uses: tuple[str, ...] = ()
    literal: Constants | None = None
    both_ways: bool = False


@dataclass(frozen=True, slots=True)
class Rounded:
    """Rounds what the encoder gave to the values of a precision, as the pipelines do; decoding leaves latents alone."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Copies:
    """`count` copies of a latent beside one another in its channels, [B,count*C,h,w], as the pipelines handle it.

    The last copy is decoded; encoding makes all of them. A latent without copies is decoded as it is.
    """

    count: int


Op = Rearrange | Affine | Rounded | Copies


@dataclass(frozen=True, slots=True)
class PixelRange:
    """The pixels of a VAE whose range is not [-1, 1]: `gain` times the usual ones plus `offset`, by colour."""

    gain: tuple[float, ...]
    offset: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way in which latents travel.

    `layouts` are the forms in which the latent may arrive, the first that fits wins; all lead to the axes of
    `ops`. `posterior` is what the family's pipelines take when they encode. `patch` is the number of latent cells
    per side that the pipelines handle as one, so the sides of written pictures are floored to ratio x patch before
    encoding; tensors are taken as they are.
    `channels` are the latent channels that weights for this recipe have; empty if any do. `ignores` names constants
    that the pipelines do not use although the weights' config may have them, `needs` those that the config must have.
    `fps` is the rate of the family's own examples, in frames a second. `ratio` is the number of pixels to a side of a
    latent cell that weights for this recipe have; 0 if any do. `pixel_channels` are those of the pictures that weights
    for this recipe give and take. `seed` is the one with which the pipelines sample the posterior, whatever the
    request's own; None if each sample is another one. `pixel_range` is that of the VAE itself, which the family's own
    `decode` and `encode` bring to the usual one; None if it is the usual one.
    """

    name: str
    layouts: tuple[Rearrange, ...]
    ops: tuple[Op, ...] = ()
    posterior: str = "sample"
    patch: int = 1
    channels: tuple[int, ...] = ()
    ignores: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    fps: float = 10  # the default of diffusers' export_to_video
    ratio: int = 0
    pixel_channels: int = RGB
    seed: int | None = None
    pixel_range: PixelRange | None = None

    @property
    def has_frames(self) -> bool:
        """Whether its latents have an axis of frames, so that they decode to videos."""
        return any("f" in re.findall(r"\w+", layout.wire) for layout in self.layouts)

    @property
    def one_frame(self) -> bool:
        """Whether the VAE takes videos, and a picture is a video of one frame to it."""
        return any(isinstance(op, Rearrange) and op.pattern.endswith("b c 1 h w") for op in self.ops)

    @property
    def frames_are_pictures(self) -> bool:
        """Whether the VAE takes pictures, and the frames of a video are a batch of pictures to it."""
        return any(isinstance(op, Rearrange) and op.pattern.endswith("(b f) c h w") for op in self.ops)

    @property
    def cells(self) -> int:
        """Latent cells to a side that are one in an encoded latent, so that a side in cells is a multiple of it."""
        return max((op.sizes.get("i", 1) for op in self.ops if isinstance(op, Rearrange)), default=1)

    @property
    def copies(self) -> int:
        """How many times the channels of the VAE's own latent an encoded latent has."""
        return math.prod(op.count for op in self.ops if isinstance(op, Copies))

    @property
    def normalised(self) -> bool:
        """Whether the VAE itself works on normalised latents, as previews do."""
        return any(isinstance(op, Affine) and op.literal is not None for op in self.ops)
