"""The options of a request, a row for each.

A row says an option's name, its type, its default and what a person should know about it. From the rows come the
parsing and rendering of queries, the client's keywords, the OpenAPI description, the flags of the command line and the
test of the documentation's table.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypedDict, get_type_hints

from remote_vae.protocol.kinds import LARGEST_SEED, Boolean, Choice, Integer, IntegerOr, Kind, Real, Shape, Text
from remote_vae.values import CODECS, IMAGE_FORMATS, VIDEO_FORMATS, Posterior


@dataclass(frozen=True, slots=True)
class Option:
    """`default` None stands for an option that is absent.

    `always` options are rendered even if they have their default, as diffusers' own client does. `flag` options are
    flags of the command line.
    """

    kind: Kind
    doc: str
    default: object = None
    always: bool = False
    flag: bool = False


PLAN: Final = Option(Text(), "How to run the VAE; plans that approximate run only when named.", flag=True)
NEAREST: Final = "nearest"
OLD_HINT: Final = Option(Text(), "A hint that old clients send; not needed.")


class TensorOptions(TypedDict, total=False):
    """What the body's bytes are; both are needed for a tensor."""

    shape: Annotated[
        tuple[int, ...], Option(Shape(), "Sizes of the tensor in the body: repeated, or one list like 1,4,64,64.")
    ]
    dtype: Annotated[
        str, Option(Text(), "Type of the tensor in the body: float16, float32 or bfloat16; uint8 for pixels.")
    ]


class ScalingOptions(TypedDict, total=False):
    """Who normalises the latent: the model's own constants, the caller's factors, or nobody."""

    do_scaling: Annotated[
        bool, Option(Boolean(), "True: the model's own normalisation. False, or nothing about scaling: none.")
    ]
    scaling_factor: Annotated[
        float | None,
        Option(
            Real(divides=True),
            "decode: z / scaling_factor + shift_factor; encode: (z - shift_factor) * scaling_factor.",
        ),
    ]
    shift_factor: Annotated[float | None, Option(Real(), "See scaling_factor.")]


class ModelOptions(TypedDict, total=False):
    """What the decoders of some models take besides the latent; `takes` on a model's card names those that it takes."""

    decode_timestep: Annotated[
        float | None,
        Option(Real(0, 1), "The timestep that a timestep-conditioned decoder is told; 0 if absent.", flag=True),
    ]
    decode_noise_scale: Annotated[
        float | None,
        Option(Real(0, 1), "Share of noise in what such a decoder is given; decode_timestep if absent.", flag=True),
    ]
    seed: Annotated[
        int | None, Option(Integer(0, LARGEST_SEED), "The seed of the noise that a decoder takes.", flag=True)
    ]


class DecodeOptions(ModelOptions, total=False):
    """What a decode may be asked for."""

    output_type: Annotated[
        str,
        Option(
            Choice(("pil", "pt", *VIDEO_FORMATS)),
            "pil: a picture; pt: the VAE's raw output; a format of video: a video. mkv is lossless.",
            "pil",
            always=True,
        ),
    ]
    partial_postprocess: Annotated[
        bool, Option(Boolean(), "With pt: uint8 pixels, channels last.", default=False, always=True)
    ]
    quality: Annotated[
        int | None,
        Option(
            Integer(1, 100),
            "The quality of JPEG, WebP, AVIF and videos, 1 to 100; a WebP video of 100 is lossless.",
            95,
            flag=True,
        ),
    ]
    image_format: Annotated[str | None, Option(Choice(IMAGE_FORMATS), "How a picture is written.")]
    fps: Annotated[
        float | None,
        Option(
            Real(1, 120),
            "Frames a second of a video, 1 to 120; if absent, those of the family's own examples.",
            flag=True,
        ),
    ]
    codec: Annotated[
        str | None,
        Option(
            Choice(CODECS),
            "The codec of an MP4: h264 if absent, hevc or av1; of a WebM: vp9 if absent, or av1.",
            flag=True,
        ),
    ]
    chroma: Annotated[
        str | None,
        Option(Choice(("half", "full")), "Resolution of a video's colours: half if absent, or full.", flag=True),
    ]
    stream: Annotated[
        bool,
        Option(Boolean(), "True: a video is sent while it is decoded, as a file or frames in parts.", default=False),
    ]
    height: Annotated[int | None, Option(Integer(1), "Height of the picture in pixels; for packed latents.", flag=True)]
    width: Annotated[int | None, Option(Integer(1), "Width of the picture in pixels; for packed latents.", flag=True)]
    plan: Annotated[str | None, PLAN]


class EncodeOptions(TypedDict, total=False):
    """What an encode may be asked for."""

    posterior: Annotated[
        str | None,
        Option(
            Choice(tuple(Posterior)),
            "What the latent is: a sample, the mode, or the parameters (mean and log-variance).",
            flag=True,
        ),
    ]
    seed: Annotated[int | None, Option(Integer(0, LARGEST_SEED), "The seed of the sample.", flag=True)]
    profile: Annotated[
        str | None,
        Option(
            Choice(("convert", "ignore")), "What becomes of a colour profile: convert (to sRGB) or ignore.", flag=True
        ),
    ]
    frames: Annotated[
        int | str | None,
        Option(
            IntegerOr(Integer(1), NEAREST),
            "How many frames of a video are taken; nearest: as many as the model can take. Of a still, which is the "
            "first frame: how many frames there are; the others are grey.",
            flag=True,
        ),
    ]
    start: Annotated[
        float | None, Option(Real(0, 1e6), "The seconds of a video before the first frame that is taken.", flag=True)
    ]
    fps: Annotated[
        float | None,
        Option(Real(0.01, 1000), "The frames a second that are taken of a video; if absent, every frame.", flag=True),
    ]
    plan: Annotated[str | None, PLAN]


class Hints(TypedDict, total=False):
    """Names that old clients send and nothing needs."""

    input_tensor_type: Annotated[str, OLD_HINT]
    output_tensor_type: Annotated[str, OLD_HINT]
    return_type: Annotated[str, OLD_HINT]


class DecodeArguments(ScalingOptions, DecodeOptions, total=False):
    """The keywords of a client's decode."""

    model: str | None


class EncodeArguments(ScalingOptions, EncodeOptions, total=False):
    """The keywords of a client's encode."""

    model: str | None


Rows = Mapping[str, Option]


def _rows(*groups: Any) -> Iterator[tuple[str, Option]]:
    for group in groups:
        for name, hint in get_type_hints(group, include_extras=True).items():
            yield name, hint.__metadata__[0]


SCALING_ROWS: Final[Rows] = dict(_rows(ScalingOptions))
DECODE_ROWS: Final[Rows] = dict(_rows(DecodeOptions))
MODEL_ROWS: Final[Rows] = dict(_rows(ModelOptions))
ENCODE_ROWS: Final[Rows] = dict(_rows(EncodeOptions))
# All that a query may say, by operation.
DECODE: Final[Rows] = dict(_rows(TensorOptions, ScalingOptions, DecodeOptions, Hints))
ENCODE: Final[Rows] = dict(_rows(TensorOptions, ScalingOptions, EncodeOptions, Hints))
# On an address that takes both operations, one of these names means a decode.
MARKS_DECODE: Final = (DECODE_ROWS.keys() - ENCODE_ROWS.keys() - {"quality"}) | {
    "do_scaling",
    "input_tensor_type",
    "fps",
}


def complete(values: Mapping[str, object], rows: Rows) -> Any:
    """The options of these rows, each with its value or its default."""
    return {name: values.get(name, row.default) for name, row in rows.items()}


def checked(arguments: Mapping[str, object], rows: Rows) -> dict[str, object]:
    """A program's keywords, judged by the rules of the wire; None means absent, and a text is read as in a query.

    *Raises* TypeError for a keyword that no row has, MalformedRequest, InvalidValue.
    """
    for name in arguments:
        if name not in rows:
            raise TypeError(f"unexpected keyword argument {name!r}; expected some of {', '.join(rows)}")
    return {
        name: rows[name].kind.read(name, value) if isinstance(value, str) else rows[name].kind.check(name, value)
        for name, value in arguments.items()
        if value is not None
    }
