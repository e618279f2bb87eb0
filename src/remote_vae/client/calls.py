"""A call: the caller's arguments -> a request of the protocol; an HTTP reply -> a checked answer.

Everything of a client but the waiting, so that the sync and the async one differ only in `await`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

from PIL import Image

from remote_vae.client.checks import check_decoded, check_encoded, check_picture_size
from remote_vae.client.endpoint import Endpoint
from remote_vae.client.exchange import HttpReply, HttpRequest
from remote_vae.client.latents import Tensor, frame_of, tensor_like
from remote_vae.client.pictures import check_mp4, read_picture, write_png
from remote_vae.errors import InvalidReply, InvalidValue
from remote_vae.protocol import parameters
from remote_vae.protocol.frame import Buffer, TensorFrame
from remote_vae.protocol.messages import DecodeRequest, EncodeRequest, Reply, ScalingMode
from remote_vae.protocol.negotiate import decode_form, encode_form
from remote_vae.protocol.replies import parse_reply
from remote_vae.protocol.wire import MODEL_NAME, render_request


class DecodeArguments(TypedDict, total=False):
    """What a decode may be given besides the latent; `decode_request` has the defaults."""

    model: str | None
    scaling_factor: float | None
    shift_factor: float | None
    do_scaling: bool
    output_type: str
    image_format: str | None
    partial_postprocess: bool
    quality: int | None
    height: int | None
    width: int | None
    plan: str | None


class EncodeArguments(TypedDict, total=False):
    """What an encode may be given besides the picture; `encode_request` has the defaults."""

    model: str | None
    scaling_factor: float | None
    shift_factor: float | None
    do_scaling: bool
    posterior: str | None
    seed: int | None
    plan: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A checked reply, and what it is to the caller: a picture, a tensor, or a video's bytes."""

    reply: Reply
    value: Any


def decode_request(
    latent: Tensor,
    *,
    model: str | None = None,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    do_scaling: bool = False,
    output_type: str = "pil",
    image_format: str | None = "png",
    partial_postprocess: bool = False,
    quality: int | None = None,
    height: int | None = None,
    width: int | None = None,
    plan: str | None = None,
) -> DecodeRequest:
    """*Raises* InvalidValue and MalformedRequest, as the server would, before anything is sent."""
    given: dict[str, object] = {
        **_scaling(scaling_factor, shift_factor, do_scaling),
        "output_type": output_type,
        "image_format": image_format,
        "partial_postprocess": partial_postprocess,
        "quality": quality,
        "height": height,
        "width": width,
        "plan": plan,
    }
    options = parameters.decode_options(parameters.read(_pairs(given), parameters.DECODE), default=ScalingMode.NONE)
    return DecodeRequest(_model(model), frame_of(latent), options, decode_form("", options))


def encode_request(
    image: Image.Image | Buffer | Tensor,
    *,
    model: str | None = None,
    scaling_factor: float | None = None,
    shift_factor: float | None = None,
    do_scaling: bool = False,
    posterior: str | None = None,
    seed: int | None = None,
    plan: str | None = None,
) -> EncodeRequest:
    """*Raises* InvalidValue and MalformedRequest, as the server would, before anything is sent."""
    given = {
        **_scaling(scaling_factor, shift_factor, do_scaling),
        "posterior": posterior,
        "seed": seed,
        "plan": plan,
    }
    options = parameters.encode_options(parameters.read(_pairs(given), parameters.ENCODE), default=ScalingMode.NONE)
    payload: Buffer | TensorFrame
    if isinstance(image, Image.Image):
        payload = write_png(image)
    elif isinstance(image, (bytes, bytearray, memoryview)):
        payload = image
    else:
        payload = frame_of(image)
    return EncodeRequest(_model(model), payload, options, encode_form(""))


def _scaling(scaling_factor: float | None, shift_factor: float | None, do_scaling: bool | None) -> dict[str, object]:
    # Numbers of numpy and torch are spelt otherwise than Python's own.
    return {
        "scaling_factor": None if scaling_factor is None else float(scaling_factor),
        "shift_factor": None if shift_factor is None else float(shift_factor),
        "do_scaling": bool(do_scaling),
    }


def _pairs(given: Mapping[str, object]) -> parameters.Pairs:
    """The arguments as the text that they would be on the wire, so that one set of rules judges both."""
    return [(name, str(value)) for name, value in given.items() if value is not None]


def _model(name: str | None) -> str | None:
    if name is not None and not MODEL_NAME.fullmatch(name):
        raise InvalidValue(f"model={name!r} cannot be a model's name; expected letters, digits, '.', '_' and '-'")
    return name


def post(endpoint: Endpoint, request: DecodeRequest | EncodeRequest) -> HttpRequest:
    """The request below the endpoint, as this project's own server takes it."""
    path, query, headers, body = render_request(request)
    return endpoint.request("POST", path, query=query, headers=headers, body=bytes(body))


def read_decoded(request: DecodeRequest, reply: HttpReply, *, like: object) -> Answer:
    """The picture, tensor or video, checked; *raises* InvalidReply, and what the server raised."""
    found = _read(request, reply)
    payload = found.payload
    if isinstance(payload, TensorFrame):
        check_decoded(request, payload)
        return Answer(found, tensor_like(payload, like))
    if found.form.is_image:
        check_size = partial(check_picture_size, request)
        return Answer(found, read_picture(payload, found.form, check_size=check_size))
    check_mp4(payload)
    return Answer(found, payload)


def read_encoded(request: EncodeRequest, reply: HttpReply, *, like: object) -> Answer:
    """The latent, checked; *raises* InvalidReply, and what the server raised."""
    found = _read(request, reply)
    if not isinstance(found.payload, TensorFrame):
        raise InvalidReply(f"the reply is {found.form.value}; expected a tensor")
    check_encoded(request, found.payload)
    return Answer(found, tensor_like(found.payload, like))


def _read(request: DecodeRequest | EncodeRequest, reply: HttpReply) -> Reply:
    found = parse_reply(reply.status, reply.headers, reply.body)
    if found.form is not request.form:
        raise InvalidReply(f"the reply is {found.form.value}; {request.form.value} was asked for")
    return found


def read_models(reply: HttpReply) -> list[dict[str, Any]]:
    """The cards of GET /models, with the names of `ModelInfo`; *raises* InvalidReply, and what the server raised."""
    if reply.status != 200:
        parse_reply(reply.status, reply.headers, reply.body)
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError) as exc:
        raise InvalidReply("the list of models is not JSON; is this a remote-vae server?") from exc
    cards = document.get("models") if isinstance(document, dict) else None
    if not isinstance(cards, list) or not all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in cards):
        raise InvalidReply("the list of models has no models with names; is this a remote-vae server?")
    return cards


def read_ready(reply: HttpReply) -> bool:
    """Whether GET /ready said yes; *raises* what the server raised, unless it was 503."""
    if reply.status not in (200, 503):
        parse_reply(reply.status, reply.headers, reply.body)
    return reply.status == 200
