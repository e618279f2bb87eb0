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
from remote_vae.protocol import parameters
from remote_vae.protocol.bodies import read_json_body
from remote_vae.protocol.dtype import FLOAT_DTYPES, ITEM_BYTES, check_dtype, clip
from remote_vae.protocol.frame import Buffer, TensorFrame, check_bytes, frame_bytes
from remote_vae.protocol.messages import (
    DecodeOptions,
    DecodeRequest,
    EncodeOptions,
    EncodeRequest,
    Operation,
    ScalingMode,
)
from remote_vae.protocol.negotiate import decode_form, encode_form

RESERVED_NAMES: Final = frozenset(
    {
        "predict",
        "decode",
        "encode",
        "health",
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
RAW_TYPES: Final = ("", "tensor/binary", "application/octet-stream", "image/png", "image/jpeg", "image/webp")


@dataclass(frozen=True, slots=True)
class TensorClaim:
    """Shape and dtype that the query promises for the body."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return frame_bytes(self.dtype, self.shape)

    def check(self, actual: int) -> None:
        """*Raises* WrongByteCount for a body of another length."""
        check_bytes(actual, self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Head:
    """All of a request but its body. `options` are final unless `body_is_json`, whose body may add parameters."""

    model: str | None
    operation: Operation
    options: DecodeOptions | EncodeOptions
    claim: TensorClaim | None
    body_is_json: bool
    pairs: parameters.Pairs
    accept: str
    ignore_unknown: bool
    timeout_seconds: float | None = None

    @property
    def raw_claim(self) -> TensorClaim | None:
        """What the body's own bytes must amount to; None where the query promises nothing about them."""
        return None if self.body_is_json else self.claim


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
    if media not in JSON_TYPES and media not in RAW_TYPES:
        raise UnsupportedMediaType(
            f"content-type {clip(media)!r} is not read; expected tensor/binary, tensor/base64, application/json or none"
        )
    if operation is Operation.DECODE and media.startswith("image/"):
        raise UnsupportedMediaType(f"content-type {media!r} is a picture; decoding takes a latent as tensor/binary")
    bare = Head(
        model=model,
        operation=operation,
        options=DecodeOptions(),
        claim=None,
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
    """On one URL the content type says what is wanted, else the names in the query."""
    if media.startswith("tensor/") or media == "application/json":
        return Operation.DECODE
    if any(name in parameters.MARKS_DECODE for name, _ in pairs):
        return Operation.DECODE
    return Operation.ENCODE


def _with_pairs(head: Head, pairs: parameters.Pairs, *, default: ScalingMode) -> Head:
    """The head with the options and the claim that these parameters state."""
    decode = head.operation is Operation.DECODE
    known = parameters.DECODE if decode else parameters.ENCODE
    values = parameters.read(pairs, known, ignore_unknown=head.ignore_unknown)
    options: DecodeOptions | EncodeOptions
    if decode:
        options = parameters.decode_options(values, default=default)
    else:
        options = parameters.encode_options(values, default=default)
    return replace(head, options=options, claim=_claim(values, head.operation), pairs=pairs)


def _claim(values: Mapping[str, object], operation: Operation) -> TensorClaim | None:
    shape, dtype = values.get("shape"), values.get("dtype")
    if shape is None and dtype is None:
        return None
    missing = "dtype" if shape is not None else "shape"
    if not isinstance(shape, tuple) or not isinstance(dtype, str):
        raise MalformedRequest(f"{missing} is missing; a tensor needs both shape and dtype", name=missing)
    allowed = FLOAT_DTYPES if operation is Operation.DECODE else tuple(ITEM_BYTES)
    return TensorClaim(check_dtype(dtype, allowed=allowed), shape)


def parse_decode(head: Head, body: Buffer) -> DecodeRequest:
    """*Raises* RequestError: 400 for a body that is not what the head promised, 406, 422."""
    head, data = _join(head, body)
    if not isinstance(head.options, DecodeOptions):
        raise TypeError("a decode needs the head of a decode")
    if head.claim is None:
        raise MalformedRequest("shape and dtype are missing; a latent needs both, like shape=1,4,64,64&dtype=float16")
    frame = TensorFrame(head.claim.dtype, head.claim.shape, data)
    return DecodeRequest(head.model, frame, head.options, decode_form(head.accept, head.options))


def parse_encode(head: Head, body: Buffer) -> EncodeRequest:
    """*Raises* RequestError: 400 for a body that is not what the head promised, 406, 422."""
    head, data = _join(head, body)
    if not isinstance(head.options, EncodeOptions):
        raise TypeError("an encode needs the head of an encode")
    if not len(data):
        raise MalformedRequest(
            "the body is empty; encoding takes a PNG, JPEG or WebP, or a tensor with shape and dtype"
        )
    image = TensorFrame(head.claim.dtype, head.claim.shape, data) if head.claim else data
    return EncodeRequest(head.model, image, head.options, encode_form(head.accept))


def _join(head: Head, body: Buffer) -> tuple[Head, Buffer]:
    """The head completed by a JSON body's parameters, and the bytes that the body stands for."""
    if not head.body_is_json:
        return head, body
    found = read_json_body(body)
    if found.parameters is None:
        return head, found.inputs
    pairs = head.pairs + parameters.from_json(found.parameters)
    # Parameters inside the body are the oldest dialect, whose clients leave the scaling to the server.
    return _with_pairs(head, pairs, default=ScalingMode.MODEL), found.inputs


def render_request(request: DecodeRequest | EncodeRequest) -> tuple[str, str, dict[str, str], Buffer]:
    """Path below the endpoint, query, headers and body, in the dialect of diffusers' own client."""
    decode = isinstance(request, DecodeRequest)
    payload = request.latent if isinstance(request, DecodeRequest) else request.image
    pairs = parameters.write(request.options)
    if isinstance(payload, TensorFrame):
        pairs += [("shape", str(size)) for size in payload.shape] + [("dtype", payload.dtype)]
    operation = Operation.DECODE if decode else Operation.ENCODE
    path = f"/{request.model}/{operation}" if request.model else f"/{operation}"
    body = payload.buffer if isinstance(payload, TensorFrame) else payload
    # A tensor type would mean "decode" on a bare endpoint, so what is to be encoded travels without one.
    media = "tensor/binary" if decode else "application/octet-stream"
    return path, urlencode(pairs), {"content-type": media, "accept": request.form.value}, body
