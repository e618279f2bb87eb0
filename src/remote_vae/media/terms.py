"""What a video is to be, and what writes it."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

KEY_SECONDS: Final = 2  # a player can go to every such moment, and drops nothing before it
VISIBLY_LOSSLESS: Final = 17  # the constant rate factor of H.264 for quality 95, which is the default
LOWEST_FACTOR: Final = 51  # of quality 1
DEFAULT_QUALITY: Final = 95


@dataclass(frozen=True, slots=True)
class VideoTerms:
    """What a video is to be. *Units*: fps in frames a second, also 23.976; sides in pixels.

    Without a `codec` it is the format's first one. With `full_colour` the colours have the resolution of the pixels.
    `streamed` if it is sent while it is written, to a file without a seek.
    """

    frames: int
    height: int
    width: int
    fps: float
    quality: int = DEFAULT_QUALITY
    codec: str = ""
    full_colour: bool = False
    streamed: bool = False

    @property
    def rate(self) -> Fraction:
        return Fraction(self.fps).limit_denominator(1001)  # 24000/1001 and the like are exact

    @property
    def factor(self) -> float:
        """The constant rate factor of H.264 for the quality. 0 would be a profile that browsers do not play."""
        if self.quality > DEFAULT_QUALITY:
            return max(1.0, VISIBLY_LOSSLESS * (100 - self.quality) / (100 - DEFAULT_QUALITY))
        share = (DEFAULT_QUALITY - self.quality) / (DEFAULT_QUALITY - 1)
        return VISIBLY_LOSSLESS + (LOWEST_FACTOR - VISIBLY_LOSSLESS) * share


class VideoWriter(Protocol):
    """A video that is being written to a file."""

    def add(self, frames: NDArray[np.uint8]) -> None:
        """*Shapes*: RGB [F,H,W,3]."""
        ...

    def end(self) -> None:
        """Writes what is left, so that the video is whole."""
        ...
