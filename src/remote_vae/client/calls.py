"""A call: the caller's arguments -> a request of the protocol; an HTTP reply -> a checked answer.

Everything of a client but the waiting.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Final

from PIL import Image

from remote_vae.client.checks import check_decoded, check_encoded, most_pixels
from remote_vae.client.endpoint import Endpoint
from remote_vae.client.exchange import HttpReply, HttpRequest
from remote_vae.client.latents import AnyTensor, tensor_like, tensor_of
from remote_vae.client.pictures import AnyPicture, read_picture, readable, write_png
from remote_vae.client.videos import check_video
from remote_vae.errors import InvalidReply, InvalidValue
from remote_vae.protocol import options, parameters
from remote_vae.protocol.messages import DecodeRequest, EncodeRequest, Reply
from remote_vae.protocol.negotiate import decode_format, encode_format
from remote_vae.protocol.options import Rows
from remote_vae.protocol.replies import parse_reply
from remote_vae.protocol.wire import MODEL_NAME, render_request
from remote_vae.values import PARTS, VIDEO_FORMATS, Buffer, Scaling, ScalingMode, Tensor

DEFAULT_IMAGE_FORMAT: Final = "png"  # lossless, where the wire's own default is JPEG


@dataclass(frozen=True, slots=True)
class Answer:
    """A checked reply, and what it is to the caller: a picture, a tensor, or a video's bytes."""

    reply: Reply
    value: Any


def decode_request(latent: AnyTensor, arguments: Mapping[str, object]) -> DecodeRequest:
    """`arguments` are those of `options.DecodeArguments`.

    *Raises* InvalidValue and MalformedRequest, as the server would, before anything is sent.
    """
    model, scaling, values = _parts({"image_format": DEFAULT_IMAGE_FORMAT, **arguments}, options.DECODE_ROWS)
    chosen = options.complete(values, options.DECODE_ROWS)
    if chosen["stream"]:
        raise InvalidValue("stream=True gives frames in parts, which decode_stream reads; leave it out", name="stream")
    return DecodeRequest(model, tensor_of(latent), scaling, chosen, decode_format("", chosen))


def stream_request(latent: AnyTensor, arguments: Mapping[str, object]) -> DecodeRequest:
    """Of frames in parts: as uint8 unless `arguments` have an output type. *Raises* what `decode_request` raises."""
    kind = {} if "output_type" in arguments else {"output_type": "pt", "partial_postprocess": True}
    model, scaling, values = _parts({**kind, **arguments, "stream": True}, options.DECODE_ROWS)
    chosen = options.complete(values, options.DECODE_ROWS)
    if chosen["output_type"] in VIDEO_FORMATS:
        raise InvalidValue(
            f"output_type={chosen['output_type']} is a file; decode_stream gives frames, as pil or pt",
            name="output_type",
        )
    return DecodeRequest(model, tensor_of(latent), scaling, chosen, PARTS)


def encode_request(image: Image.Image | Buffer | AnyTensor, arguments: Mapping[str, object]) -> EncodeRequest:
    """`arguments` are those of `options.EncodeArguments`.

    *Raises* InvalidValue and MalformedRequest, as the server would, before anything is sent; OSError for a path that
    cannot be read.
    """
    model, scaling, values = _parts(arguments, options.ENCODE_ROWS)
    payload: Buffer | Tensor
    if isinstance(image, (str, PathLike)):
        image = Path(image).read_bytes()
    if isinstance(image, Image.Image):
        payload = write_png(image)
    elif isinstance(image, (bytes, bytearray, memoryview)):
        payload = readable(image)
    else:
        payload = tensor_of(image)
    return EncodeRequest(model, payload, scaling, options.complete(values, options.ENCODE_ROWS), encode_format(""))


def made_ready(image: AnyPicture, arguments: Mapping[str, object]) -> tuple[EncodeRequest, object]:
    """`encode_request`, and the picture itself, which is what a function returns if the picture is one."""
    found = image() if callable(image) else image
    return encode_request(found, arguments), found


def _parts(arguments: Mapping[str, object], rows: Rows) -> tuple[str | None, Scaling, Mapping[str, object]]:
    """The model's name, the scaling, and the other options by name."""
    given = dict(arguments)
    model = _model(given.pop("model", None))
    values = options.checked(given, {**options.SCALING_ROWS, **rows})
    return model, parameters.scaling(values, default=ScalingMode.NONE), values


def _model(name: object) -> str | None:
    if name is not None and not (isinstance(name, str) and MODEL_NAME.fullmatch(name)):
        raise InvalidValue(f"model={name!r} cannot be a model's name; expected letters, digits, '.', '_' and '-'")
    return name


def post(endpoint: Endpoint, request: DecodeRequest | EncodeRequest) -> HttpRequest:
    """The request below the endpoint, as this project's own server takes it."""
    path, query, headers, body = render_request(request)
    return endpoint.request("POST", path, query=query, headers=headers, body=bytes(body))


def read_reply(request: DecodeRequest | EncodeRequest, reply: HttpReply) -> Reply:
    """The reply, its tensor checked; *raises* InvalidReply, and what the server raised."""
    found = parse_reply(reply.status, reply.headers, reply.body)
    if found.format.media_type != request.format.media_type:
        raise InvalidReply(f"the reply is {found.format.media_type}; {request.format.media_type} was asked for")
    if isinstance(found.payload, Tensor):
        if isinstance(request, DecodeRequest):
            check_decoded(request, found.payload)
        else:
            check_encoded(request, found.payload)
    return replace(found, format=request.format)  # pictures and videos may have one media type


def answer(request: DecodeRequest | EncodeRequest, found: Reply, *, like: object) -> Answer:
    """The picture, the tensor, or the video's bytes; *raises* InvalidReply."""
    payload = found.payload
    if isinstance(payload, Tensor):
        return Answer(found, tensor_like(payload, like))
    if found.format.is_image and isinstance(request, DecodeRequest):
        return Answer(found, read_picture(payload, found.format, most_pixels=most_pixels(request)))
    check_video(payload, found.format)
    return Answer(found, payload)


def read_models(reply: HttpReply) -> dict[str, Any]:
    """What GET /models says: the cards under "models", and names under "default", "unknown", "loading"
    and "unloaded".

    *Raises* InvalidReply, and what the server raised.
    """
    if reply.status != 200:
        parse_reply(reply.status, reply.headers, reply.body)
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError) as exc:
        raise InvalidReply("the list of models is not JSON; is this a remote-vae server?") from exc
    cards = document.get("models") if isinstance(document, dict) else None
    if not isinstance(cards, list) or not all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in cards):
        raise InvalidReply("the list of models has no models with names; is this a remote-vae server?")
    found: dict[str, Any] = document
    return found


def find_card(listed: Mapping[str, Any], name: str | None) -> dict[str, Any] | None:
    """The card of a name or alias, in any case; None is the server's default model."""
    wanted = name or listed.get("default")
    for card in listed["models"]:
        if wanted is None or wanted == card["name"] or wanted.lower() in card.get("aliases", ()):
            found: dict[str, Any] = card
            return found
    return None


def read_ready(reply: HttpReply) -> bool:
    """Whether GET /ready said yes; *raises* what the server raised, unless it was 503."""
    if reply.status not in (200, 503):
        parse_reply(reply.status, reply.headers, reply.body)
    return reply.status == 200
