"""What travels, as values: requests, replies and the card of a model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from remote_vae.protocol.options import DecodeOptions, EncodeOptions
from remote_vae.python310 import StrEnum
from remote_vae.values import RGB, Buffer, Format, Scaling, Tensor


class Operation(StrEnum):
    DECODE = "decode"
    ENCODE = "encode"


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """`model` None is the server's first model."""

    model: str | None
    latent: Tensor
    scaling: Scaling
    options: DecodeOptions
    format: Format


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """`image` is a written picture (PNG, JPEG, WebP) or a tensor [B,P,H,W] / [B,P,F,H,W], P pixel channels."""

    model: str | None
    image: Buffer | Tensor
    scaling: Scaling
    options: EncodeOptions
    format: Format


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

    payload: Tensor | bytes
    format: Format
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
    deterministic: bool = False  # the encoder gives a latent and not a distribution
    encodes: bool = True  # it has an encoder
    frames_first: bool = False  # its class in diffusers has the frames of pixels before their channels
    takes: tuple[str, ...] = ()  # options of a decode that only some models take
    normalised: bool = False  # the VAE itself takes normalised latents, as previews do
    frames: Mapping[str, object] = field(default_factory=dict)  # how latent frames become frames, `values.Frames`
    pixel_range: Mapping[str, object] | None = (
        None  # of the VAE itself, if it is not [-1, 1]: gain and offset by colour
    )
    pixel_channels: int = RGB  # 4 if its pictures have transparency
    devices: tuple[Mapping[str, object], ...] = ()  # device, title and total_bytes of each that runs it

    def to_json(self) -> dict[str, object]:
        return asdict(self)
