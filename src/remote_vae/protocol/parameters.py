"""Query and JSON parameters <-> typed options. Strict: what is not understood is refused, never guessed."""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import unquote_to_bytes

from remote_vae.errors import MalformedRequest, UnknownParameter
from remote_vae.protocol.dtype import clip
from remote_vae.protocol.messages import (
    DecodeOptions,
    EncodeOptions,
    ImageFormat,
    OutputType,
    Posterior,
    Scaling,
    ScalingMode,
)
from remote_vae.protocol.readers import (
    MAX_RANK,
    choice,
    read_boolean,
    read_factor,
    read_quality,
    read_real,
    read_seed,
    read_shape,
    read_size,
    read_text,
)

Pairs = list[tuple[str, str]]

ABSENT: Final = ("", "None", "null")
MAX_PAIRS: Final = 64
DEFAULT_QUALITY: Final = DecodeOptions().quality

_BROKEN_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One name of the wire: how its text is read, and what a person should know about it."""

    read: Callable[[str, str], object]
    doc: str
    schema: Mapping[str, object]


def split_query(query: str | bytes) -> Pairs:
    """Names and values of a query string, percent-decoded; *raises* MalformedRequest."""
    try:
        text = query.decode("ascii") if isinstance(query, bytes) else query
        pieces = [piece for piece in text.split("&") if piece]
        if len(pieces) > MAX_PAIRS:
            raise MalformedRequest(f"the query has {len(pieces)} parameters; at most {MAX_PAIRS} are read")
        return [_split_pair(piece) for piece in pieces]
    except UnicodeError as exc:
        raise MalformedRequest("the query is not percent-encoded UTF-8 text") from exc


def _split_pair(piece: str) -> tuple[str, str]:
    if _BROKEN_PERCENT.search(piece):
        raise MalformedRequest(f"query parameter {clip(piece)!r} has a broken percent escape")
    name, _, value = piece.replace("+", " ").partition("=")
    return unquote_to_bytes(name).decode("utf-8"), unquote_to_bytes(value).decode("utf-8")


def from_json(parameters: object) -> Pairs:
    """The pairs of a JSON object of parameters, so that both spellings are read by the same rules."""
    if not isinstance(parameters, dict):
        raise MalformedRequest("'parameters' must be a JSON object, like {\"shape\": [1, 4, 64, 64]}")
    if len(parameters) > MAX_PAIRS:
        raise MalformedRequest(f"'parameters' has {len(parameters)} entries; at most {MAX_PAIRS} are read")
    return [(str(name), v if isinstance(v, str) else json.dumps(v)) for name, v in parameters.items()]


_STRING: Final = {"type": "string"}
_INT: Final = {"type": "integer"}
_SIZE: Final = {"type": "integer", "minimum": 1}
_NUMBER: Final = {"type": "number"}
_BOOL: Final = {"type": "boolean"}


def _one_of(kind: type[StrEnum]) -> Mapping[str, object]:
    return {"type": "string", "enum": [member.value for member in kind]}


TENSOR: Final = {
    "shape": Parameter(
        read_shape,
        "Sizes of the tensor in the body: repeated, or one list like 1,4,64,64.",
        {"type": "array", "items": _SIZE, "maxItems": MAX_RANK},
    ),
    "dtype": Parameter(
        read_text, "Type of the tensor in the body: float16, float32 or bfloat16; uint8 for pictures.", _STRING
    ),
}
FACTORS: Final = {
    "scaling_factor": Parameter(
        read_factor, "decode: z / scaling_factor + shift_factor; encode: (z - shift_factor) * scaling_factor.", _NUMBER
    ),
    "shift_factor": Parameter(read_real, "See scaling_factor.", _NUMBER),
    "do_scaling": Parameter(
        read_boolean, "True: the model's own normalisation. False, or nothing about scaling: none.", _BOOL
    ),
}
DECODE_ONLY: Final = {
    "output_type": Parameter(
        choice(OutputType), "pil: a picture; pt: the VAE's raw output; mp4: a video.", _one_of(OutputType)
    ),
    "partial_postprocess": Parameter(read_boolean, "With pt: uint8 pixels, channels last.", _BOOL),
    "image_format": Parameter(choice(ImageFormat), "How a picture is written.", _one_of(ImageFormat)),
    "height": Parameter(read_size, "Height of the picture in pixels; for packed latents.", _SIZE),
    "width": Parameter(read_size, "Width of the picture in pixels; for packed latents.", _SIZE),
    "quality": Parameter(
        read_quality, "Of JPEG and WebP, 1 to 100.", {"type": "integer", "minimum": 1, "maximum": 100}
    ),
}
ENCODE_ONLY: Final = {
    "posterior": Parameter(
        choice(Posterior), "A sample, the mode, or the parameters (mean and log-variance).", _one_of(Posterior)
    ),
    "seed": Parameter(read_seed, "Of the sample.", _INT),
}
SHARED: Final = {
    "plan": Parameter(read_text, "How to run the VAE; plans that approximate run only when named.", _STRING),
    "input_tensor_type": Parameter(read_text, "A hint that old clients send; not needed.", _STRING),
    "output_tensor_type": Parameter(read_text, "A hint that old clients send; not needed.", _STRING),
    "return_type": Parameter(read_text, "A hint that old clients send; not needed.", _STRING),
}
DECODE: Final[Mapping[str, Parameter]] = {**TENSOR, **FACTORS, **DECODE_ONLY, **SHARED}
ENCODE: Final[Mapping[str, Parameter]] = {**TENSOR, **FACTORS, **ENCODE_ONLY, **SHARED}
MARKS_DECODE: Final = frozenset(DECODE_ONLY) - {"quality"} | {"do_scaling", "input_tensor_type"}


def read(pairs: Pairs, known: Mapping[str, Parameter], *, ignore_unknown: bool = False) -> dict[str, object]:
    """Typed values by name; absent ones are missing from the result.

    *Raises* UnknownParameter naming the nearest known name, MalformedRequest for a name given twice (only
    `shape` repeats), and what the single readers raise.
    """
    texts: dict[str, str] = {}
    for name, text in pairs:
        if name not in known:
            if ignore_unknown:
                continue
            raise _unknown(name, known)
        if name == "shape" and name in texts:
            texts[name] += "," + text
        elif name in texts:
            raise MalformedRequest(f"{name} is given twice; only shape may repeat", name=name)
        else:
            texts[name] = text
    # An empty factor is more likely a bug in the caller than the wish for an unscaled latent, which is a wrong picture.
    for name in ("scaling_factor", "shift_factor"):
        if texts.get(name) == "":
            raise MalformedRequest(f"{name} is empty; give a number, or leave the name out", name=name)
    return {name: known[name].read(name, text) for name, text in texts.items() if text not in ABSENT}


def _unknown(name: str, known: Iterable[str]) -> UnknownParameter:
    names = list(known)
    nearest = difflib.get_close_matches(name[:40], names, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]}?" if nearest else f"; known are {', '.join(names)}"
    return UnknownParameter(f"parameter {clip(name)!r} is not known{hint}", name=clip(name), nearest=nearest[:1])


def scaling(values: Mapping[str, object], *, default: ScalingMode) -> Scaling:
    """The scaling rule: given factors, else do_scaling, else the dialect's default."""
    factor, shift, wanted = values.get("scaling_factor"), values.get("shift_factor"), values.get("do_scaling")
    if factor is not None or shift is not None:
        return Scaling(ScalingMode.GIVEN, _float(factor), _float(shift))
    if wanted is None:
        return Scaling(default)
    return Scaling(ScalingMode.MODEL if wanted else ScalingMode.NONE)


def _float(value: object) -> float | None:
    return value if isinstance(value, float) else None


def decode_options(values: Mapping[str, object], *, default: ScalingMode) -> DecodeOptions:
    """*Raises* nothing: `values` come from `read`."""
    names = ("output_type", "image_format", "partial_postprocess", "quality", "height", "width", "plan")
    given = {name: values[name] for name in names if name in values}
    return DecodeOptions(scaling=scaling(values, default=default), **given)  # type: ignore[arg-type]  # typed by the readers


def encode_options(values: Mapping[str, object], *, default: ScalingMode) -> EncodeOptions:
    """*Raises* nothing: `values` come from `read`."""
    given = {name: values[name] for name in ("posterior", "seed", "plan") if name in values}
    return EncodeOptions(scaling=scaling(values, default=default), **given)  # type: ignore[arg-type]  # typed by the readers


def write(options: DecodeOptions | EncodeOptions) -> Pairs:
    """The pairs that say these options in the dialect of diffusers' own client."""
    pairs: Pairs = []
    mode = options.scaling
    if mode.mode is ScalingMode.MODEL:
        pairs.append(("do_scaling", "True"))
    for name, value in (("scaling_factor", mode.scaling_factor), ("shift_factor", mode.shift_factor)):
        if value is not None:
            pairs.append((name, repr(float(value))))
    if isinstance(options, DecodeOptions):
        pairs += [
            ("output_type", options.output_type.value),
            ("partial_postprocess", str(options.partial_postprocess)),
        ]
        if options.quality != DEFAULT_QUALITY:
            pairs.append(("quality", str(options.quality)))
        optional: tuple[tuple[str, object], ...] = (
            ("image_format", options.image_format),
            ("height", options.height),
            ("width", options.width),
            ("plan", options.plan),
        )
    else:
        optional = (("posterior", options.posterior), ("seed", options.seed), ("plan", options.plan))
    return pairs + [(name, str(value)) for name, value in optional if value is not None]
