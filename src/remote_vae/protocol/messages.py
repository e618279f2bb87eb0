"""What travels, as values: requests, replies and the card of a model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from remote_vae.protocol.frame import Buffer, TensorFrame


class Operation(StrEnum):
    DECODE = "decode"
    ENCODE = "encode"


class OutputType(StrEnum):
    """What the caller wants of a decode; the names are diffusers' own."""

    PIL = "pil"  # a finished picture, or floats in [0, 1]
    PT = "pt"  # the VAE's raw output, or uint8 with partial_postprocess
    MP4 = "mp4"


class ImageFormat(StrEnum):
    JPG = "jpg"
    PNG = "png"
    WEBP = "webp"


class Posterior(StrEnum):
    """What is taken of the encoder's Gaussian: a draw, its mean, or mean and log-variance themselves."""

    SAMPLE = "sample"
    MODE = "mode"
    PARAMETERS = "parameters"


class Form(StrEnum):
    """How a reply's body is written; the value is its media type."""

    JPG = "image/jpeg"
    PNG = "image/png"
    WEBP = "image/webp"
    MP4 = "video/mp4"
    BINARY = "tensor/binary"
    BASE64 = "tensor/base64"

    @property
    def is_image(self) -> bool:
        return self in (Form.JPG, Form.PNG, Form.WEBP)

    @property
    def is_tensor(self) -> bool:
        return self in (Form.BINARY, Form.BASE64)


class ScalingMode(StrEnum):
    NONE = "none"  # the latent is already what the VAE's decoder takes
    MODEL = "model"  # the model's own normalisation, all of it
    GIVEN = "given"  # the caller's factors


@dataclass(frozen=True, slots=True)
class Scaling:
    """Who denormalises a latent, and with what: decode is z / scaling_factor + shift_factor."""

    mode: ScalingMode = ScalingMode.NONE
    scaling_factor: float | None = None
    shift_factor: float | None = None


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """`height` and `width` are the picture's, in pixels; they matter for packed latents only."""

    scaling: Scaling = Scaling()
    output_type: OutputType = OutputType.PIL
    image_format: ImageFormat | None = None  # None: the caller leaves it to the Accept header, then JPEG
    partial_postprocess: bool = False
    quality: int = 95
    height: int | None = None
    width: int | None = None
    plan: str | None = None


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """`posterior` None is the model family's own default; `seed` makes a sample reproducible."""

    scaling: Scaling = Scaling()
    posterior: Posterior | None = None
    seed: int | None = None
    plan: str | None = None


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """`model` None is the server's first model."""

    model: str | None
    latent: TensorFrame
    options: DecodeOptions
    form: Form


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """`image` is a written picture (PNG, JPEG, WebP) or a tensor [B,3,H,W] / [B,3,F,H,W]."""

    model: str | None
    image: Buffer | TensorFrame
    options: EncodeOptions
    form: Form


@dataclass(frozen=True, slots=True)
class Provenance:
    """How a reply came about; it travels in the headers. `timings_ms` are stages by name."""

    request_id: str = ""
    model: str = ""
    revision: str = ""
    plan: str = ""
    dtype: str = ""
    note: str = ""
    timings_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a decode or an encode: a tensor, or a picture or video already written."""

    payload: TensorFrame | bytes
    form: Form
    provenance: Provenance = Provenance()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model's card, as GET /models lists it: all that a client needs to talk to it."""

    name: str
    aliases: tuple[str, ...]
    recipe: str
    kind: str  # "image" or "video"
    latent_channels: int
    spatial_compression_ratio: int
    temporal_compression_ratio: int
    latent_layouts: tuple[str, ...]  # einops patterns; C, H, W as in the docs
    scaling_factor: float | None
    shift_factor: float | None
    latents_mean: tuple[float, ...] | None
    latents_std: tuple[float, ...] | None
    posterior: str  # the family's default
    dtype: str
    plans: tuple[str, ...]
    executor: str  # "strips", exact in bounded memory; or "diffusers", for an architecture that strips do not know
    source: str
    revision: str
    limits: Mapping[str, int] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)  # what diffusers' pipelines read of a VAE

    def to_json(self) -> dict[str, object]:
        return asdict(self)
