"""The values that every room shares: one word for each thing, said once. Standard library only."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from remote_vae.errors import InvalidValue, WrongByteCount
from remote_vae.python310 import StrEnum

Buffer = bytes | bytearray | memoryview

ITEM_BYTES: Final[Mapping[str, int]] = MappingProxyType({"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1})
FLOAT_DTYPES: Final = ("float16", "float32", "bfloat16")
# Channels of a pixel. Pictures of four have transparency.
RGB: Final = 3
RGBA: Final = 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's type, shape and raw bytes (little-endian, C order); it cannot be built if the three disagree.

    *Raises* InvalidValue for an unknown dtype or a size below 1, WrongByteCount for a buffer of another length.
    """

    dtype: str
    shape: tuple[int, ...]
    buffer: Buffer

    def __post_init__(self) -> None:
        check_bytes(memoryview(self.buffer).nbytes, self.dtype, self.shape)


def check_dtype(name: str, *, allowed: tuple[str, ...] = tuple(ITEM_BYTES)) -> str:
    """`name` if it is allowed; a table look-up, so that no text ever selects an attribute of a library."""
    if name not in allowed:
        raise InvalidValue(
            f"dtype {clip(name)!r} is not one that travels here; expected one of {', '.join(allowed)}",
            name="dtype",
            allowed=list(allowed),
        )
    return name


def check_bytes(actual: int, dtype: str, shape: tuple[int, ...]) -> None:
    """*Raises* WrongByteCount unless a tensor of this dtype and shape has `actual` bytes."""
    expected = tensor_bytes(dtype, shape)
    if actual != expected:
        raise WrongByteCount(
            f"the body has {actual} bytes; shape {list(shape)} of {dtype} needs {expected}",
            actual_bytes=actual,
            expected_bytes=expected,
            shape=list(shape),
            dtype=dtype,
        )


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor, in exact integers: nothing here can wrap around."""
    check_dtype(dtype)
    if not shape or any(size < 1 for size in shape):
        raise InvalidValue(
            f"shape {list(shape)} must name at least one axis, each of size 1 or more",
            name="shape",
            shape=list(shape),
        )
    return math.prod(shape) * ITEM_BYTES[dtype]


def clip(text: str, limit: int = 40) -> str:
    """At most `limit` printable characters of what a client sent, safe to stand in an error message."""
    safe = "".join(c if c.isprintable() and c not in "<>&" else "?" for c in text[:limit])
    return safe + ("..." if len(text) > limit else "")


class ScalingMode(StrEnum):
    NONE = "none"  # the latent is already what the VAE's decoder takes
    MODEL = "model"  # the model's own normalisation, all of it
    GIVEN = "given"  # the caller's factors


@dataclass(frozen=True, slots=True)
class Scaling:
    """Who denormalises a latent, and with what: decoding computes z / scaling_factor + shift_factor."""

    mode: ScalingMode = ScalingMode.NONE
    scaling_factor: float | None = None
    shift_factor: float | None = None


class Posterior(StrEnum):
    """What is taken of the encoder's Gaussian: a draw, its mean, or mean and log-variance themselves."""

    SAMPLE = "sample"
    MODE = "mode"
    PARAMETERS = "parameters"


class Output(StrEnum):
    """What is made of the decoder's output.

    *Shapes*: RAW [B,C,H,W] or [B,C,F,H,W] as the VAE gives it; UNIT the same in [0, 1], but [F,C,H,W] for video;
    UINT8 [B,H,W,C] or [F,H,W,C]; FIRST [1,H,W,C], the first picture or frame.
    """

    RAW = "raw"
    UNIT = "unit"
    UINT8 = "uint8"
    FIRST = "first"


@dataclass(frozen=True, slots=True)
class Counts:
    """The numbers that a model takes: `least`, and every `step` beyond it, or none if that is 0, up to `most`."""

    least: int = 1
    step: int = 1
    most: int | None = None

    def nearest(self, number: int) -> tuple[int, ...]:
        """`number` alone if the model takes it, otherwise those that it takes below and above."""
        if number < self.least or not self.step:
            return (self.least,)
        if self.most is not None and number > self.most:
            return (self.most,)
        over = (number - self.least) % self.step
        return (number - over, number - over + self.step) if over else (number,)

    def refusal(self, number: int, model: str) -> str:
        """What the model takes and the nearest of it, for an error's text; empty if it takes this number."""
        nearest = self.nearest(number)
        if nearest == (number,):
            return ""
        steps = {0: "only", 1: "or more"}.get(self.step, f"and groups of {self.step} after that")
        if self.most is not None:
            steps = f"to {self.most}" if self.step == 1 else f"{steps} up to {self.most}"
        return f"model {model!r} takes {self.least} {steps}, so send {' or '.join(map(str, nearest))}"

    def times(self, factor: int) -> "Counts":
        """The same in a unit of which a cell has `factor`."""
        return Counts(self.least * factor, self.step * factor, None if self.most is None else self.most * factor)


ANY_NUMBER: Final = Counts()


class FrameRule(StrEnum):
    """How many frames a video VAE makes of latent frames."""

    CAUSAL = "causal"  # `first` of the first latent frame, `group` of each other
    PAIRS = "pairs"  # as causal for an odd number of latent frames; an even number gives `group` of each
    CLIPS = "clips"  # causal, from the beginning again after every `span` latent frames
    CHUNKS = "chunks"  # causal, in chunks of `span` after the first latent frame; a last chunk of one gives one frame


@dataclass(frozen=True, slots=True)
class Frames:
    """How many frames a video VAE makes of latent frames, and the reverse; for pictures one of each.

    A VAE that takes `whole` groups only refuses frames beyond the last one; others drop them. `latents` are the numbers
    of latent frames that can be decoded. The encoder itself adds `added` frames to a video, and drops the last
    `dropped` latent frames of one that it encodes in clips.
    """

    group: int = 1
    first: int = 1
    whole: bool = False
    rule: FrameRule = FrameRule.CAUSAL
    span: int = 0
    latents: Counts = ANY_NUMBER
    added: int = 0
    dropped: int = 0

    def of_latent(self, latent_frames: int) -> int:
        """Pixel frames that this many latent frames give."""
        if self.rule is FrameRule.PAIRS and latent_frames % 2 == 0:
            return latent_frames * self.group
        if self.rule is FrameRule.CLIPS:
            clips, rest = divmod(latent_frames, self.span)
            return clips * self._causal(self.span) + (self._causal(rest) if rest else 0)
        if self.rule is FrameRule.CHUNKS and latent_frames > self.span + 1 and (latent_frames - 1) % self.span == 1:
            return self._causal(latent_frames - 1) + 1
        return self._causal(latent_frames)

    def latent(self, frames: int) -> int:
        """Latent frames that this many frames give; those beyond the last whole group do not count."""
        if self.rule is FrameRule.CLIPS and frames > 1:
            clip = self._causal(self.span)
            return (frames + clip - 1) // clip * self.span - self.dropped
        return 1 + (frames + self.added - self.first) // self.group

    @property
    def counts(self) -> Counts:
        """The numbers of frames that can be encoded."""
        most = None if self.latents.most is None else self._causal(self.latents.most)
        if not self.whole:
            return Counts(most=most)
        return Counts(self._causal(self.latents.least), self.group * self.latents.step, most)

    def _causal(self, latent_frames: int) -> int:
        return self.first + (latent_frames - 1) * self.group

    @staticmethod
    def from_json(found: Mapping[str, Any]) -> "Frames":
        return Frames(**{**found, "rule": FrameRule(found["rule"]), "latents": Counts(**found["latents"])})


@dataclass(frozen=True, slots=True)
class Format:
    """A way in which a reply's body is written.

    `name` is what `image_format` says; `pillow` is the imaging library's name, empty if another library writes it.
    `accepts` are further media types by which clients ask for it. A video with `parts` can be sent while it is written.
    `codecs` are those that a request can name, of which the first is the default.
    *Units*: longest_side in pixels.
    """

    name: str
    media_type: str
    kind: str  # "image", "video" or "tensor"
    suffixes: tuple[str, ...] = ()
    pillow: str = ""
    longest_side: int = 2**31 - 1
    lossy: bool = False
    alpha: bool = False
    parts: bool = False
    accepts: tuple[str, ...] = ()
    codecs: tuple[str, ...] = ()

    @property
    def is_image(self) -> bool:
        return self.kind == "image"

    @property
    def is_video(self) -> bool:
        return not (self.is_image or self.is_tensor)

    @property
    def is_tensor(self) -> bool:
        return self.kind == "tensor"


_PICTURES: Final = (
    Format("jpg", "image/jpeg", "image", (".jpg", ".jpeg"), "JPEG", 65500, lossy=True),
    Format("png", "image/png", "image", (".png",), "PNG", alpha=True),
    Format("webp", "image/webp", "image", (".webp",), "WEBP", 16383, lossy=True, alpha=True),
    Format("avif", "image/avif", "image", (".avif",), "AVIF", 65536, lossy=True, alpha=True),
)
_VIDEOS: Final = (
    Format(
        "mp4",
        "video/mp4",
        "video",
        (".mp4",),
        lossy=True,
        parts=True,
        accepts=("text/plain", "application/octet-stream"),
        codecs=("h264", "hevc", "av1"),
    ),
    Format("webm", "video/webm", "video", (".webm",), "", 16383, lossy=True, parts=True, codecs=("vp9", "av1")),
    Format("mkv", "video/matroska", "video", (".mkv",), parts=True, accepts=("video/x-matroska",)),
    Format("gif", "image/gif", "video", (".gif",), "", 65535, lossy=True, parts=True),
    Format("webp", "image/webp", "video", (".webp",), "", 16383, lossy=True),
    Format("avif", "image/avif", "video", (".avif",), "", 65536, lossy=True, codecs=("av1",)),
    Format("zip", "application/zip", "video", (".zip",), parts=True),
)
_TENSORS: Final = (
    Format("binary", "tensor/binary", "tensor", accepts=("application/octet-stream",)),
    Format("base64", "tensor/base64", "tensor", accepts=("application/json",)),
)
# Frames as tensors, one part of a reply after the other; the only format of a tensor that is sent while it is made.
PARTS: Final = Format("parts", "multipart/mixed", "tensor", parts=True, accepts=("tensor/binary",))
VIDEO_FORMATS: Final[Mapping[str, Format]] = MappingProxyType({row.name: row for row in _VIDEOS})
# A name that pictures and videos have is the picture's here, for which pictures come last again.
FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {row.name: row for row in (*_PICTURES, *_VIDEOS, *_TENSORS, *_PICTURES)}
)
CODECS: Final = tuple(dict.fromkeys(codec for row in _VIDEOS for codec in row.codecs))
IMAGE_FORMATS: Final = tuple(row.name for row in _PICTURES)
TRANSPARENT_FORMATS: Final = tuple(row.name for row in _PICTURES if row.alpha)
