"""Requests <-> (path, query, headers, body): with `replies` and `negotiate`, all that spells a header or a media type.

A request is parsed in two steps, because the first must be able to refuse before the body is read:
`parse_head` reads path, query and headers; `parse_decode` / `parse_encode` add the body. The client walks the
same road in reverse: `render_request`, then `replies.parse_reply`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlencode

from remote_vae.errors import InvalidValue, MalformedRequest, UnknownRoute, UnsupportedMediaType
from remote_vae.protocol import options, parameters
from remote_vae.protocol.bodies import read_json_body
from remote_vae.protocol.messages import DecodeRequest, EncodeRequest, Operation
from remote_vae.protocol.negotiate import decode_format, encode_format
from remote_vae.protocol.options import DecodeOptions, EncodeOptions
from remote_vae.values import (
    FLOAT_DTYPES,
    ITEM_BYTES,
    Buffer,
    Scaling,
    ScalingMode,
    Tensor,
    check_bytes,
    check_dtype,
    clip,
    tensor_bytes,
)

RESERVED_NAMES: Final = frozenset(
    {
        "predict",
        "decode",
        "encode",
        "health",
        "jobs",
        "live",
        "ready",
        "models",
        "metrics",
        "docs",
        "openapi.json",
        "page",
        "v1",
    }
)
MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TIMEOUT_HEADER: Final = "x-request-timeout-seconds"
TIMEOUT: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?", re.ASCII)
JSON_TYPES: Final = ("tensor/base64", "application/json")
RAW_TYPES: Final = ("", "tensor/binary", "application/octet-stream", "binary/octet-stream")
FILE_TYPES: Final = ("image/", "video/", "application/zip")
CURL: Final = "--data-binary @FILE -H 'content-type: application/octet-stream'"
FORM_TYPES: Final = {"application/x-www-form-urlencoded": "--data-binary", "multipart/form-data": "-F"}  # of curl


@dataclass(frozen=True, slots=True)
class Head:
    """All of a request but its body.

    `shape` and `dtype` are those that the query promises for the tensor in the body; both are None without a promise.
    `scaling` and `options` are final unless `body_is_json`, whose body may add parameters.
    """

    model: str | None
    operation: Operation
    scaling: Scaling
    options: DecodeOptions | EncodeOptions
    shape: tuple[int, ...] | None
    dtype: str | None
    body_is_json: bool
    pairs: parameters.Pairs
    accept: str
    ignore_unknown: bool
    timeout_seconds: float | None = None

    @property
    def decode_options(self) -> DecodeOptions | None:
        """The options of a decode; None for an encode."""
        return self.options if self.operation is Operation.DECODE else None  # type: ignore[return-value]  # by `operation`

    @property
    def body_bytes(self) -> int | None:
        """How many bytes a raw body must have; None if the query promises nothing about them."""
        if self.body_is_json or self.dtype is None or self.shape is None:
            return None
        return tensor_bytes(self.dtype, self.shape)

    def check_body(self, actual: int) -> None:
        """*Raises* WrongByteCount if a raw body of `actual` bytes is not what the query promises."""
        if self.body_bytes is not None and self.dtype is not None and self.shape is not None:
            check_bytes(actual, self.dtype, self.shape)


def parse_route(path: str) -> tuple[str | None, Operation | None]:
    """Model and operation that a path names, either None; *raises* UnknownRoute."""
    parts = path.strip("/").split("/") if path.strip("/") else []
    model: str | None = None
    if parts and parts[0] not in ("predict", "decode", "encode"):
        model = parts.pop(0)
        if not MODEL_NAME.fullmatch(model) or model in RESERVED_NAMES:
            raise UnknownRoute(f"there is nothing at {clip(path)!r}; try /, /<model>/decode or /models")
    if not parts or (parts == ["predict"] and model is None):
        return model, None
    if len(parts) == 1 and parts[0] in ("decode", "encode"):
        return model, Operation(parts[0])
    raise UnknownRoute(f"there is nothing at {clip(path)!r}; try /, /<model>/decode or /models")


def parse_head(path: str, query: bytes, headers: Mapping[str, str], *, ignore_unknown: bool = False) -> Head:
    """Route, options and promised tensor of a request whose body has not been read.

    `headers` have lower-case names. *Raises* RequestError: 400, 404, 415, 422.
    """
    model, operation = parse_route(path)
    coding = headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedMediaType(f"content-encoding {clip(coding)!r} is not read; send the body as it is")
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    pairs = parameters.split_query(query)
    if operation is None:
        operation = _operation_of(media, pairs)
    # Pictures are known by their bytes: many programs name them wrongly, or as they were named once.
    if media not in JSON_TYPES and media not in RAW_TYPES and not media.startswith(FILE_TYPES):
        flag = FORM_TYPES.get(media)
        advice = "" if flag is None else f"; it is what curl sends with {flag}: send {CURL}"
        raise UnsupportedMediaType(
            f"content-type {clip(media)!r} is not read; expected tensor/binary, tensor/base64, application/json, a "
            f"picture's, a video's or none{advice}"
        )
    if operation is Operation.DECODE and media.startswith(FILE_TYPES):
        what = "picture" if media.startswith("image/") else "file"
        raise UnsupportedMediaType(f"content-type {media!r} is a {what}; decoding takes a latent as tensor/binary")
    bare = Head(
        model=model,
        operation=operation,
        scaling=Scaling(),
        options={},
        shape=None,
        dtype=None,
        body_is_json=media in JSON_TYPES,
        pairs=pairs,
        accept=headers.get("accept", ""),
        ignore_unknown=ignore_unknown,
        timeout_seconds=_timeout(headers.get(TIMEOUT_HEADER)),
    )
    return _with_pairs(bare, pairs, default=ScalingMode.NONE)


def _timeout(text: str | None) -> float | None:
    """How long the caller will wait. *Raises* InvalidValue."""
    if text is None:
        return None
    if not TIMEOUT.fullmatch(text) or not float(text):
        raise InvalidValue(f"{TIMEOUT_HEADER} {clip(text)!r} is not a number of seconds above 0", name=TIMEOUT_HEADER)
    return float(text)


def _operation_of(media: str, pairs: parameters.Pairs) -> Operation:
    """On one URL the content type says what is wanted, otherwise the names in the query."""
    if media.startswith("tensor/") or media == "application/json":
        return Operation.DECODE
    if media.startswith(("video/", "application/zip")):
        return Operation.ENCODE
    if any(name in options.MARKS_DECODE for name, _ in pairs):
        return Operation.DECODE
    return Operation.ENCODE


def _with_pairs(head: Head, pairs: parameters.Pairs, *, default: ScalingMode) -> Head:
    """The head with the options and the tensor that these parameters state."""
    decode = head.operation is Operation.DECODE
    values = parameters.read(pairs, options.DECODE if decode else options.ENCODE, ignore_unknown=head.ignore_unknown)
    shape, dtype = _promised_tensor(values, FLOAT_DTYPES if decode else tuple(ITEM_BYTES))
    return replace(
        head,
        scaling=parameters.scaling(values, default=default),
        options=options.complete(values, options.DECODE_ROWS if decode else options.ENCODE_ROWS),
        shape=shape,
        dtype=dtype,
        pairs=pairs,
    )


def _promised_tensor(
    values: Mapping[str, object], dtypes: tuple[str, ...]
) -> tuple[tuple[int, ...], str] | tuple[None, None]:
    shape, dtype = values.get("shape"), values.get("dtype")
    if shape is None and dtype is None:
        return None, None
    missing = "dtype" if shape is not None else "shape"
    if not isinstance(shape, tuple) or not isinstance(dtype, str):
        raise MalformedRequest(f"{missing} is missing; a tensor needs both shape and dtype", name=missing)
    return shape, check_dtype(dtype, allowed=dtypes)


def parse_decode(head: Head, body: Buffer, *, transparent: bool = False, video: bool = False) -> DecodeRequest:
    """The request; `transparent` tells whether the model's pictures have transparency, `video` whether it has frames.

    *Raises* RequestError: 400 for a body that is not what the head promised, 406, 422.
    """
    head, data = _join(head, body)
    chosen = head.decode_options
    if chosen is None:
        raise TypeError("a decode needs the head of a decode")
    if head.dtype is None or head.shape is None:
        raise MalformedRequest("shape and dtype are missing; a latent needs both, like shape=1,4,64,64&dtype=float16")
    latent = Tensor(head.dtype, head.shape, data)
    asked = decode_format(head.accept, chosen, transparent=transparent, video=video)
    return DecodeRequest(head.model, latent, head.scaling, chosen, asked)


def parse_encode(head: Head, body: Buffer) -> EncodeRequest:
    """*Raises* RequestError: 400 for a body that is not what the head promised, 406, 422."""
    head, data = _join(head, body)
    if head.decode_options is not None:
        raise TypeError("an encode needs the head of an encode")
    if not len(data):
        raise MalformedRequest(
            "the body is empty; encoding takes a PNG, JPEG or WebP, a video, or a tensor with shape and dtype"
        )
    image = Tensor(head.dtype, head.shape, data) if head.dtype and head.shape else data
    chosen: EncodeOptions = head.options  # type: ignore[assignment]  # an encode's head has an encode's options
    return EncodeRequest(head.model, image, head.scaling, chosen, encode_format(head.accept))


def _join(head: Head, body: Buffer) -> tuple[Head, Buffer]:
    """The head completed by a JSON body's parameters, and the bytes that the body stands for."""
    if not head.body_is_json:
        return head, body
    inputs, given = read_json_body(body)
    return join_json(head, given), inputs


def join_json(head: Head, given: object | None) -> Head:
    """The head completed by a JSON body's parameters, as if the body had been its inputs alone."""
    whole = head
    if given is not None:
        # Parameters inside the body are the oldest dialect, whose clients leave the scaling to the server.
        whole = _with_pairs(head, head.pairs + parameters.from_json(given), default=ScalingMode.MODEL)
    return replace(whole, body_is_json=False)


def render_request(request: DecodeRequest | EncodeRequest) -> tuple[str, str, dict[str, str], Buffer]:
    """Path below the endpoint, query, headers and body, in the dialect of diffusers' own client."""
    decode = isinstance(request, DecodeRequest)
    payload = request.latent if isinstance(request, DecodeRequest) else request.image
    pairs = parameters.write(request.scaling, request.options, options.DECODE_ROWS if decode else options.ENCODE_ROWS)
    if isinstance(payload, Tensor):
        pairs += [("shape", str(size)) for size in payload.shape] + [("dtype", payload.dtype)]
    operation = Operation.DECODE if decode else Operation.ENCODE
    path = f"/{request.model}/{operation}" if request.model else f"/{operation}"
    body = payload.buffer if isinstance(payload, Tensor) else payload
    # A tensor type would mean "decode" on a bare endpoint, so what is to be encoded travels without one.
    media = "tensor/binary" if decode else "application/octet-stream"
    return path, urlencode(pairs), {"content-type": media, "accept": request.format.media_type}, body
