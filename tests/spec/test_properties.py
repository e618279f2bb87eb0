"""Every parser, on any text and bytes: it gives a value that keeps its promise, or raises the error it names."""

import base64
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_vae.client.retry import retry_after
from remote_vae.errors import ConfigurationError, MalformedRequest, NotAcceptable, RemoteVAEError, RequestError
from remote_vae.models.spec import parse_spec
from remote_vae.protocol import options, wire
from remote_vae.protocol.bodies import read_json_body
from remote_vae.protocol.digest import check_digest
from remote_vae.protocol.kinds import Boolean, Integer, Real, Shape
from remote_vae.protocol.negotiate import decode_format, encode_format
from remote_vae.protocol.replies import parse_reply
from remote_vae.server.auth import _credential
from remote_vae.server.keys import Keys
from remote_vae.values import FORMATS, Format

NUMBERS = st.from_regex(r"[+-]?[0-9_.]{0,8}([eE][+-]?[0-9]{1,4})?", fullmatch=True)
ODD = st.sampled_from(
    ["0", "-0", "-0.0", "1e400", "١٢", "\uff11\uff16", "1_000", " 1", "1\n", "nan", "inf", "0x10", "1e-400", "9" * 40]
)
TEXT = st.text(max_size=40) | NUMBERS | ODD
NAMES = st.sampled_from([*options.DECODE, *options.ENCODE, "x"])
VALUES = TEXT | st.sampled_from(["1,4,8,8", "[1,4,8,8]", "float16", "True", "pt", "pil", "mp4", "0.18215", "None", ""])
QUERY = st.lists(st.tuples(NAMES, VALUES), max_size=8).map(lambda pairs: "&".join(f"{n}={v}" for n, v in pairs))
MEDIA_TYPES = [row.media_type for row in FORMATS.values()]
ASCII = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60)


@given(TEXT)
@settings(max_examples=500)
def test_numbers(text: str) -> None:
    """A number that is accepted is plain ASCII, finite and within bounds, and is the one that was written."""
    for kind in (Integer(), Integer(1), Real(), Real(divides=True)):
        try:
            value: Any = kind.read("n", text)
        except RequestError:
            continue
        assert text.isascii()
        assert "_" not in text
        assert text == text.strip()
        assert math.isfinite(value)
        assert value == float(text) or value == int(text)
        assert kind != Integer(1) or value >= 1
        assert kind != Real(divides=True) or 1e-6 <= abs(value) <= 1e6


@given(TEXT)
def test_booleans(text: str) -> None:
    """Six spellings are booleans, and nothing else is."""
    try:
        assert Boolean().read("b", text) is (text in ("True", "true", "1"))
    except MalformedRequest:
        assert text not in ("True", "true", "1", "False", "false", "0")


@given(st.lists(TEXT | st.integers(-2, 2**64).map(str), max_size=9).map(",".join) | TEXT)
@settings(max_examples=500)
def test_shapes(text: str) -> None:
    """A shape that is accepted has one to eight sizes of 1 or more, exactly as written."""
    try:
        shape = Shape().read("shape", text)
    except RequestError:
        return
    assert 1 <= len(shape) <= 8
    assert all(size >= 1 for size in shape)
    assert [int(part) for part in text.strip(" []").split(",")] == list(shape)


def check_refusal(refusal: RequestError) -> None:
    assert 400 <= refusal.status < 500
    assert refusal.message.isprintable()
    assert len(refusal.message) < 1000
    json.dumps(dict(refusal.detail))


@given(
    path=ASCII | st.sampled_from(["/", "/sd", "/sd/decode", "/sd/encode/", "/predict"]),
    query=(QUERY.map(lambda text: text.encode(errors="surrogateescape"))) | st.binary(max_size=60),
    media=TEXT | st.sampled_from(["", "tensor/binary", "tensor/base64", "application/json", "image/png"]),
    accept=TEXT,
    timeout=st.none() | TEXT,
    body=st.binary(max_size=64),
)
@settings(max_examples=1000, deadline=None)
def test_requests(path: str, query: bytes, media: str, accept: str, timeout: str | None, body: bytes) -> None:
    """Any request is parsed into a message whose bytes agree with its shape, or refused as the client's fault."""
    headers = {"content-type": media, "accept": accept}
    if timeout is not None:
        headers[wire.TIMEOUT_HEADER] = timeout
    try:
        head = wire.parse_head(path, query, headers)
        found: Any = (wire.parse_decode if head.operation == "decode" else wire.parse_encode)(head, body)
    except RequestError as exc:
        check_refusal(exc)
        return
    frame = found.latent if head.operation == "decode" else found.image
    if hasattr(frame, "shape"):
        assert frame.shape == head.shape if head.shape else True
        assert len(frame.buffer) == math.prod(frame.shape) * {"float32": 4, "uint8": 1}.get(frame.dtype, 2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda v: st.lists(v) | st.dictionaries(st.text(max_size=8), v),
    max_leaves=8,
)


@given(
    st.binary(max_size=64)
    | JSON.map(lambda v: json.dumps(v).encode())
    | JSON.map(lambda v: json.dumps({"inputs": v}).encode())
)
@settings(max_examples=500)
def test_json_bodies(body: bytes) -> None:
    """A body that is accepted is an object whose "inputs" is the base64 of what comes out."""
    try:
        inputs, _ = read_json_body(body)
    except MalformedRequest:
        return
    text = json.loads(body, strict=False)["inputs"].rstrip("\r\n").removeprefix("data:;base64,")
    text = text.replace("-", "+").replace("_", "/").rstrip("=")
    padded = text + "=" * (-len(text) % 4)
    assert base64.b64decode(padded, validate=True) == inputs  # the last bits of a text need not be zero


@given(
    accept=st.text(max_size=60)
    | st.lists(st.sampled_from(["image/*", "*/*", "tensor/binary", "a/b", "image/png;q=0", "q", ";q=1"])).map(",".join)
)
def test_accept(accept: str) -> None:
    """Any Accept header gives one of the forms, or NotAcceptable."""
    defaults = options.complete({}, options.DECODE_ROWS)
    for form in (lambda: decode_format(accept, defaults), lambda: encode_format(accept)):
        try:
            assert isinstance(form(), Format)
        except NotAcceptable:
            continue


@given(
    field=ASCII | st.binary(max_size=9).map(lambda b: f"sha-256=:{base64.b64encode(b).decode()}:"),
    body=st.binary(max_size=9),
)
def test_digests(field: str, body: bytes) -> None:
    """Nothing but the body's own digest passes for its digest."""
    try:
        check_digest(field, body)
    except MalformedRequest:
        return
    assert "sha-256" not in field


@given(
    status=st.integers(100, 599),
    headers=st.dictionaries(
        st.sampled_from(["content-type", "shape", "dtype", "server-timing", "x-note"]),
        TEXT | st.sampled_from([*MEDIA_TYPES, "[1,2]", "float16"]),
    ),
    body=st.binary(max_size=32),
)
@settings(max_examples=500)
def test_replies(status: int, headers: dict[str, str], body: bytes) -> None:
    """Any answer of a server is a reply that agrees with itself, or one of our errors."""
    try:
        reply = parse_reply(status, headers, body)
    except RemoteVAEError:
        return
    assert status == 200
    assert len(body)
    assert reply.format.media_type == headers["content-type"].partition(";")[0].strip().lower()


@given(
    st.binary(max_size=60)
    | ASCII.map(str.encode)
    | st.binary(max_size=30).map(lambda b: b"Basic " + base64.b64encode(b))
)
@settings(max_examples=500)
def test_credentials(value: bytes) -> None:
    """No Authorization header makes the gate fail, and none but a key's opens it."""
    keys = Keys(["a-key-of-some-length"])
    assert keys.find(_credential({"headers": [(b"authorization", value)]})) is None


@given(st.text(max_size=60))
def test_model_arguments(text: str) -> None:
    """Any --model argument is a spec or a ConfigurationError."""
    try:
        parse_spec(text)
    except ConfigurationError:
        return


@given(TEXT | ASCII)
def test_retry_after(text: str) -> None:
    """Any Retry-After is a time to wait, or none."""
    seconds = retry_after({"retry-after": text})
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize("zeros", ["-0", "-0.0", "0e400", "-0e-400"])
def test_zero_factors(zeros: str) -> None:
    """Every zero is refused as a factor, which divides."""
    with pytest.raises(RequestError):
        Real(divides=True).read("scaling_factor", zeros)
