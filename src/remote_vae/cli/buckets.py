"""Buckets: the few sizes to which a trainer brings pictures, so that those of a batch are of one size."""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import Image

from remote_vae.cli.caches import Size
from remote_vae.errors import ConfigurationError

SMALLEST: Final = 256  # side of a bucket in pixels, if the resolution allows it
RESIZED: Final = ("L", "LA", "RGB", "RGBA")
KEPT_INFO: Final = ("icc_profile",)  # of a picture that has been turned


@dataclass(frozen=True, slots=True)
class Fit:
    """A picture in its bucket. `kept` is the part of the upright picture that is left: left, top, right, bottom."""

    image: Image.Image
    kept: tuple[float, float, float, float]
    scale: float

    def share_cut(self, size: Size) -> float:
        """The share of the picture's pixels that was cut away."""
        left, top, right, bottom = self.kept
        return 1 - (right - left) * (bottom - top) / (size[0] * size[1])


@dataclass(frozen=True)
class Buckets:
    """The sizes for an area; *raises* ConfigurationError if there is none."""

    resolution: int
    step: int
    sizes: tuple[Size, ...]

    def of(self, size: Size) -> Size:
        """The picture's own size if it is a bucket, otherwise the bucket with the nearest aspect ratio."""
        if size in self.sizes:
            return size
        aspect = size[0] / size[1]
        return min(self.sizes, key=lambda bucket: abs(bucket[0] / bucket[1] - aspect))


def buckets_of_kohya(resolution: int, step: int, smallest: int | None, largest: int | None) -> Buckets:
    """Those of sd-scripts: sides from the smallest to the largest, and at most the area of the resolution.

    *Source*: make_bucket_resolutions in library/model_util.py.
    """
    least = _stepped(smallest or min(SMALLEST, resolution // 2), step) or step
    most = _stepped(largest or 2 * resolution, step)
    square = _stepped(resolution, step)
    found = {(square, square)} if square else set()
    for width in range(least, most + 1, step):
        height = min(most, _stepped(resolution**2 // width, step))
        if height >= least:
            found |= {(width, height), (height, width)}
    return _checked(resolution, step, found)


def buckets_of_musubi(resolution: int, step: int) -> Buckets:
    """Those of musubi-tuner, whose shorter side is at least half of the resolution.

    *Source*: BucketSelector in dataset/bucket.py.
    """
    found = set[Size]()
    for width in range(_stepped(resolution // 2, step) or step, resolution + step, step):
        height = _stepped(resolution**2 // width, step)
        found |= {(width, height), (height, width)}
    return _checked(resolution, step, {size for size in found if all(size)})


def fit(image: Image.Image, bucket: Size) -> Fit:
    """The picture, scaled until it covers the bucket, and cut to it around its middle."""
    image = _plain(image)
    scale = max(bucket[0] / image.width, bucket[1] / image.height)
    whole = (max(bucket[0], int(image.width * scale + 0.5)), max(bucket[1], int(image.height * scale + 0.5)))
    left, top = (whole[0] - bucket[0]) // 2, (whole[1] - bucket[1]) // 2
    across, down = image.width / whole[0], image.height / whole[1]
    kept = (left * across, top * down, (left + bucket[0]) * across, (top + bucket[1]) * down)
    resized = image if whole == image.size else image.resize(whole, Image.Resampling.LANCZOS)
    return Fit(resized.crop((left, top, left + bucket[0], top + bucket[1])), kept, scale)


def _plain(image: Image.Image) -> Image.Image:
    """The picture in a mode that can be scaled, with its colour profile, and without a word about which way is up."""
    info: dict[str | tuple[int, int], Any] = {name: image.info[name] for name in KEPT_INFO if image.info.get(name)}
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257 + 0.5).astype(np.uint8))
    elif image.mode not in RESIZED:
        if image.mode not in ("1", "P", "PA"):
            info = {}  # the profile belongs to the mode that is left
        grey = "L" if image.mode == "1" else "RGB"
        image = image.convert("RGBA" if image.has_transparency_data else grey)
    else:
        transparent = image.has_transparency_data and image.mode in ("L", "RGB")  # one colour stands for it
        image = image.convert("RGBA") if transparent else image.copy()
    image.info = info
    return image


def _stepped(side: float, step: int) -> int:
    return int(side // step) * step


def _checked(resolution: int, step: int, found: set[Size]) -> Buckets:
    if not found or min(resolution, step) < 1:
        raise ConfigurationError(
            f"--bucket {resolution} with --bucket-step {step} leaves no bucket; the resolution must be at least the "
            "step, and --bucket-min at most --bucket-max"
        )
    return Buckets(resolution, step, tuple(sorted(found)))


def check_step(step: int, ratio: int) -> None:
    """*Raises* ConfigurationError if the model would cut a bucket's sides down."""
    if step < 1 or step % ratio:
        raise ConfigurationError(
            f"--bucket-step {step} must be a multiple of {ratio}, the model's pixels a latent cell"
        )


def area_side(text: str) -> int:
    """`--bucket` as a number: 1024, or 1216x832 for the same area; *raises* ConfigurationError."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdecimal() and 0 < int(side[:6]) <= 65536 for side in sides):
        raise ConfigurationError(f"--bucket {text} must be a number of pixels, as in 1024, or two, as in 1216x832")
    return math.isqrt(int(sides[0]) * int(sides[-1]))
