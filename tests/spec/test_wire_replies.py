"""Every form of reply, byte for byte; reading one back; and the replies that must be refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_vae import errors
from remote_vae.errors import InvalidReply, RemoteVAEError
from remote_vae.protocol.messages import Provenance, Reply
from remote_vae.protocol.replies import parse_reply, render_error, render_reply, request_id_of
from remote_vae.values import FORMATS, Tensor

MEDIA_TYPES = [row.media_type for row in FORMATS.values()]
FRAME = Tensor("float16", (1, 3, 1, 2), b"\x00\x3c" * 6)
FULL = Provenance(
    request_id="r-1",
    model="demo",
    revision="abc123",
    plan="strips",
    dtype="float32",
    note="decoded in float32",
    timings_ms={"queue": 0.5, "decode": 12.25, "media": 3.0},
)
FULL_HEADERS = [
    ("x-request-id", "r-1"),
    ("x-model", "demo"),
    ("x-model-revision", "abc123"),
    ("x-plan", "strips"),
    ("x-dtype", "float32"),
    ("x-note", "decoded in float32"),
    ("server-timing", "queue;dur=0.50, decode;dur=12.25, media;dur=3.00"),
]

GOLDEN = {
    "binary": (
        Reply(FRAME, FORMATS["binary"]),
        [("content-type", "tensor/binary"), ("shape", "[1, 3, 1, 2]"), ("dtype", "float16")],
        b"\x00\x3c\x00\x3c\x00\x3c\x00\x3c\x00\x3c\x00\x3c",
    ),
    "binary, with its provenance": (
        Reply(FRAME, FORMATS["binary"], FULL),
        [("content-type", "tensor/binary"), *FULL_HEADERS, ("shape", "[1, 3, 1, 2]"), ("dtype", "float16")],
        b"\x00\x3c\x00\x3c\x00\x3c\x00\x3c\x00\x3c\x00\x3c",
    ),
    "uint8": (
        Reply(Tensor("uint8", (1, 1, 1, 3), b"\x00\x80\xff"), FORMATS["binary"]),
        [("content-type", "tensor/binary"), ("shape", "[1, 1, 1, 3]"), ("dtype", "uint8")],
        b"\x00\x80\xff",
    ),
    "base64": (
        Reply(FRAME, FORMATS["base64"]),
        [("content-type", "tensor/base64"), ("shape", "[1, 3, 1, 2]"), ("dtype", "float16")],
        b'{"inputs": "ADwAPAA8ADwAPAA8", "parameters": {"shape": [1, 3, 1, 2], "dtype": "float16"}}',
    ),
    "jpg": (Reply(b"\xff\xd8\xff\xd9", FORMATS["jpg"]), [("content-type", "image/jpeg")], b"\xff\xd8\xff\xd9"),
    "png": (Reply(b"\x89PNG", FORMATS["png"], FULL), [("content-type", "image/png"), *FULL_HEADERS], b"\x89PNG"),
    "webp": (Reply(b"RIFF", FORMATS["webp"]), [("content-type", "image/webp")], b"RIFF"),
    "mp4": (Reply(b"\x00\x00\x00\x18ftyp", FORMATS["mp4"]), [("content-type", "video/mp4")], b"\x00\x00\x00\x18ftyp"),
}


@pytest.mark.parametrize(("reply", "headers", "body"), GOLDEN.values(), ids=GOLDEN.keys())
def test_a_reply_is_these_bytes(reply: Reply, headers: list[tuple[str, str]], body: bytes) -> None:
    """A reply is status 200 with exactly these headers and exactly this body."""
    assert render_reply(reply) == (200, headers, body)


@pytest.mark.parametrize(("reply", "headers", "body"), GOLDEN.values(), ids=GOLDEN.keys())
def test_a_golden_reply_is_read(reply: Reply, headers: list[tuple[str, str]], body: bytes) -> None:
    """The client reads the golden bytes as the reply that the server meant."""
    assert parse_reply(200, dict(headers), body) == reply


def test_foreign_servers_are_read() -> None:
    """Only content-type, shape and dtype are needed to read a tensor, and media type parameters do no harm."""
    headers = {"content-type": "Tensor/Binary; charset=utf-8", "shape": "[1,3,1,2]", "dtype": "float16"}
    assert parse_reply(200, headers, FRAME.buffer) == Reply(FRAME, FORMATS["binary"])


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(tuple)
words = st.text("abcdefghijklmnopqrstuvwxyz-._0123456789", max_size=12)
timings = st.dictionaries(st.sampled_from(["queue", "decode", "media"]), st.integers(0, 10**6).map(lambda n: n / 4))
provenances = st.builds(Provenance, words, words, words, words, words, words, timings)


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    """Any reply that a server may give."""
    form = draw(st.sampled_from(list(FORMATS.values())))
    if not form.is_tensor:
        return Reply(draw(st.binary(min_size=1, max_size=32)), form, draw(provenances))
    shape = draw(shapes)
    dtype = draw(st.sampled_from(["float16", "float32", "uint8"]))
    count = {"float32": 4, "float16": 2, "uint8": 1}[dtype]
    for size in shape:
        count *= size
    frame = Tensor(dtype, shape, draw(st.binary(min_size=count, max_size=count)))
    return Reply(frame, form, draw(provenances))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(replies())
def test_what_is_rendered_is_read_back(reply: Reply) -> None:
    """Reading a rendered reply gives the reply, with its provenance."""
    status, headers, body = render_reply(reply)
    assert parse_reply(status, dict(headers), body) == reply


BINARY = {"content-type": "tensor/binary", "shape": "[1, 2]", "dtype": "uint8"}
BASE64 = {"content-type": "tensor/base64"}
HUGE = b"1" + b"0" * 4000

BROKEN = {
    "no content type": ({}, b"x"),
    "a web page": ({"content-type": "text/html"}, b"<html>"),
    "JSON that is no tensor": ({"content-type": "application/json"}, b"{}"),
    "an empty picture": ({"content-type": "image/png"}, b""),
    "an empty video": ({"content-type": "video/mp4"}, b""),
    "no shape": ({"content-type": "tensor/binary", "dtype": "uint8"}, b"ab"),
    "no dtype": ({"content-type": "tensor/binary", "shape": "[2]"}, b"ab"),
    "a shape that is no list": ({**BINARY, "shape": "2"}, b"ab"),
    "a shape that is not closed": ({**BINARY, "shape": "[2"}, b"ab"),
    "a shape nested without end": ({**BINARY, "shape": "[" * 100_000}, b"ab"),
    "a shape of floats": ({**BINARY, "shape": "[2.0]"}, b"ab"),
    "a shape of booleans": ({**BINARY, "shape": "[true, 2]"}, b"ab"),
    "a shape of text": ({**BINARY, "shape": '["2"]'}, b"ab"),
    "an empty shape": ({**BINARY, "shape": "[]"}, b"a"),
    "a negative size": ({**BINARY, "shape": "[-1, -2]"}, b"ab"),
    "a size of zero": ({**BINARY, "shape": "[0]"}, b""),
    "a size of 5000 digits": ({**BINARY, "shape": "[" + "9" * 5000 + "]"}, b"ab"),
    "an unknown dtype": ({**BINARY, "dtype": "float64"}, b"ab"),
    "a byte missing": (BINARY, b"a"),
    "a byte too many": (BINARY, b"abc"),
    "base64: no JSON": (BASE64, b"ab"),
    "base64: a list": (BASE64, b"[]"),
    "base64: no inputs": (BASE64, b'{"parameters": {"shape": [1], "dtype": "uint8"}}'),
    "base64: no parameters": (BASE64, b'{"inputs": "YQ=="}'),
    "base64: parameters are a list": (BASE64, b'{"inputs": "YQ==", "parameters": [1]}'),
    "base64: not base64": (BASE64, b'{"inputs": "?", "parameters": {"shape": [1], "dtype": "uint8"}}'),
    "base64: no shape": (BASE64, b'{"inputs": "YQ==", "parameters": {"dtype": "uint8"}}'),
    "base64: an unknown dtype": (BASE64, b'{"inputs": "YQ==", "parameters": {"shape": [1], "dtype": "x"}}'),
    "base64: a lying shape": (BASE64, b'{"inputs": "YQ==", "parameters": {"shape": [2], "dtype": "uint8"}}'),
    "base64: a byte count beyond what can be written": (
        BASE64,
        b'{"inputs": "YQ==", "parameters": {"shape": [' + HUGE + b", " + HUGE + b'], "dtype": "uint8"}}',
    ),
}


@pytest.mark.parametrize(("headers", "body"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_reply_is_refused(headers: dict[str, str], body: bytes) -> None:
    """A reply of status 200 that breaks the rules is an InvalidReply, never a guess or another exception."""
    with pytest.raises(InvalidReply):
        parse_reply(200, headers, body)


header_names = ["content-type", "shape", "dtype", "x-request-id", "server-timing", "x-model"]
header_values = (
    st.sampled_from(
        [
            *(row.media_type for row in FORMATS.values()),
            "float16",
            "uint8",
            "[1, 2]",
            "[2]",
            "decode;dur=1.5",
            "application/json",
        ]
    )
    | st.text(st.characters(max_codepoint=255), max_size=30)
    | st.text("[]0123456789,- ", max_size=12)
)
json_bodies = st.sampled_from(
    [b'{"inputs": "YQ==", "parameters": {"shape": [1], "dtype": "uint8"}}', b'{"error": "x", "detail": {"self": 1}}']
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.sampled_from([200, 200, 204, 302, 400, 404, 422, 500, 503, 599]),
    st.dictionaries(st.sampled_from(header_names), header_values),
    st.binary(max_size=40) | json_bodies,
)
def test_any_reply_is_a_reply_or_one_of_our_errors(status: int, headers: dict[str, str], body: bytes) -> None:
    """Whatever a server sends becomes a Reply, InvalidReply for status 200, or the error that it tells."""
    try:
        assert parse_reply(status, headers, body).format in FORMATS.values()
    except RemoteVAEError as error:
        assert isinstance(error, InvalidReply) == (status == 200)  # noqa: PT017  # a value is as good


ERRORS = {
    "with detail and id": (
        errors.WrongByteCount("the body has 3 bytes", request_id="r-1", actual_bytes=3, shape=[1, 4]),
        400,
        [("content-type", "application/json"), ("x-request-id", "r-1")],
        b'{"error": "the body has 3 bytes", "error_type": "wrong_byte_count", '
        b'"detail": {"actual_bytes": 3, "shape": [1, 4]}, "request_id": "r-1"}',
    ),
    "bare": (
        errors.UnknownRoute("there is nothing at '/x'"),
        404,
        [("content-type", "application/json")],
        b'{"error": "there is nothing at \'/x\'", "error_type": "unknown_route", "detail": {}, "request_id": null}',
    ),
    "to be tried again": (
        errors.Overloaded("the queue is full"),
        503,
        [("content-type", "application/json"), ("retry-after", "1")],
        b'{"error": "the queue is full", "error_type": "overloaded", "detail": {}, "request_id": null}',
    ),
    "text beyond ASCII": (
        errors.InvalidValue("the latent is \u00e9mu"),
        422,
        [("content-type", "application/json")],
        b'{"error": "the latent is \\u00e9mu", "error_type": "invalid_value", "detail": {}, "request_id": null}',
    ),
    "without a status of its own": (
        errors.ModelLoadError("no weights"),
        500,
        [("content-type", "application/json")],
        b'{"error": "no weights", "error_type": "model_load_error", "detail": {}, "request_id": null}',
    ),
}


@pytest.mark.parametrize(("error", "status", "headers", "body"), ERRORS.values(), ids=ERRORS.keys())
def test_an_error_is_these_bytes(
    error: RemoteVAEError, status: int, headers: list[tuple[str, str]], body: bytes
) -> None:
    """An error is JSON with its text under "error", its code under "error_type", and these headers."""
    assert render_error(error) == (status, headers, body)


@pytest.mark.parametrize(
    "cls", [cls for cls in errors.all_errors() if cls.status >= 400], ids=lambda cls: str(cls.__name__)
)
def test_an_error_crosses_the_wire_whole(cls: type[RemoteVAEError]) -> None:
    """The client raises the class, message, detail and request id that the server rendered."""
    status, headers, body = render_error(cls("what was wrong", request_id="r-1", limit=3, shape=[1, 4]))
    with pytest.raises(RemoteVAEError) as caught:
        parse_reply(status, dict(headers), body)
    error = caught.value
    assert type(error) is cls
    assert (error.message, error.detail, error.request_id) == ("what was wrong", {"limit": 3, "shape": [1, 4]}, "r-1")


@pytest.mark.parametrize(
    ("status", "body", "cls", "message"),
    [
        (404, b'{"error": "Model not found"}', errors.UnknownRoute, "Model not found"),
        (413, b"", errors.TooLarge, "the server answered 413 without saying why"),
        (418, b'{"error": "teapot", "error_type": "teapot"}', errors.RequestError, "teapot"),
        (500, b"<html>Internal Server Error</html>", errors.ServerError, "the server answered 500 without saying why"),
        (502, b'["x"]', errors.ServerError, "the server answered 502 without saying why"),
        (503, b'{"error": "x", "detail": {"message": 1, "request_id": 2, "self": 3}}', errors.NotReady, "x"),
        (400, b"[" * 100_000, errors.RequestError, "the server answered 400 without saying why"),
    ],
)
def test_a_foreign_error_becomes_the_nearest_of_ours(
    status: int, body: bytes, cls: type[RemoteVAEError], message: str
) -> None:
    """An error of another server is raised as the most general class of its status, with the text it gave."""
    with pytest.raises(RemoteVAEError) as caught:
        parse_reply(status, {"x-request-id": "r-9"}, body)
    assert type(caught.value) is cls
    assert (caught.value.message, caught.value.request_id) == (message, "r-9")


@pytest.mark.parametrize(
    ("given_id", "kept"),
    [
        ("r-1", True),
        ("A.b_c-9", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        ("a b", False),
        ("a\r\nset-cookie: x", False),
        ("a\n", False),
        ("<script>", False),
        ("\u0661", False),
    ],
)
def test_a_request_id_is_kept_when_harmless(given_id: str, kept: bool) -> None:
    """A caller's request id is repeated only when it is short, plain ASCII without spaces or markup."""
    assert request_id_of({"x-request-id": given_id}) == (given_id if kept else None)
