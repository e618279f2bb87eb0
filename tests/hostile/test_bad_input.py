"""Bad requests: each gets its status and a JSON error that names the value and what was expected."""

import base64
import io
import json
import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("_then_works")

RAW = {"content-type": "tensor/binary"}
JSON = {"content-type": "application/json"}
LATENT = np.linspace(-1, 1, 256, dtype=np.float32).tobytes()
SHAPE = "shape=1,4,8,8&dtype=float32"


@dataclass
class Bad:
    """A request, and the status, code and words of its refusal."""

    path: str
    status: int
    code: str
    words: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: dict(RAW))


def special(value: float, dtype: str = "float32", *, last: bool = False) -> bytes:
    values = np.zeros(256, np.float32)
    values[-1 if last else 0] = value
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype(dtype).tobytes()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    claim = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + claim + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(5).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(out, kind)
    return out.getvalue()


def bad_checksum() -> bytes:
    """A PNG whose pixels are whole, and whose chunk of pixels has another chunk's checksum."""
    data = picture("PNG")
    return data[:-16] + bytes(byte ^ 255 for byte in data[-16:-12]) + data[-12:]


def inputs(text: str, **more: object) -> bytes:
    return json.dumps({"inputs": text, **more}).encode()


def sd(query: str, status: int, code: str, words: str, body: bytes = LATENT) -> Bad:
    return Bad(f"/sd/decode?{query}", status, code, words, body)


def as_json(body: bytes, status: int, code: str, words: str, query: str = SHAPE) -> Bad:
    return Bad(f"/sd/decode?{query}", status, code, words, body, dict(JSON))


def encode(body: bytes, status: int, code: str, words: str, query: str = "") -> Bad:
    return Bad(f"/sd/encode?{query}", status, code, words, body, {})


LENGTHS = {
    "one byte short": sd(SHAPE, 400, "wrong_byte_count", r"1023 bytes.*needs 1024", LATENT[:-1]),
    "one byte long": sd(SHAPE, 400, "wrong_byte_count", r"1025 bytes.*needs 1024", LATENT + b"x"),
    "no body": sd(SHAPE, 400, "wrong_byte_count", r"0 bytes.*needs 1024", b""),
    "another dtype": sd(
        "shape=1,4,8,8&dtype=float16", 400, "wrong_byte_count", r"1024 bytes.*\[1, 4, 8, 8\] of float16 needs 512"
    ),
    "in base64": as_json(
        inputs(base64.b64encode(LATENT[:-4]).decode()), 400, "wrong_byte_count", "1020 bytes.*needs 1024"
    ),
    "tensor to encode": encode(
        bytes(100), 400, "wrong_byte_count", "100 bytes.*needs 12288", "shape=1,3,64,64&dtype=uint8"
    ),
}
SHAPES = {
    "no shape": sd("dtype=float32", 400, "malformed_request", "shape is missing"),
    "no dtype": sd("shape=1,4,8,8", 400, "malformed_request", "dtype is missing"),
    "neither": sd("output_type=pt", 400, "malformed_request", "shape and dtype are missing"),
    "words": sd("shape=a,b&dtype=float32", 400, "malformed_request", "shape='a' is not an integer"),
    "float": sd("shape=1.0,4,8,8&dtype=float32", 400, "malformed_request", "'1.0' is not an integer"),
    "exponent": sd("shape=1e0,4,8,8&dtype=float32", 400, "malformed_request", "'1e0' is not an integer"),
    "underscore": sd("shape=1,4,8,0_8&dtype=float32", 400, "malformed_request", "'0_8' is not an integer"),
    "plus sign": sd("shape=%2B1,4,8,8&dtype=float32", 400, "malformed_request", "is not an integer"),
    "full-width digits": sd("shape=%EF%BC%91,4,8,8&dtype=float32", 400, "malformed_request", "is not an integer"),
    "true": sd("shape=True,4,8,8&dtype=float32", 400, "malformed_request", "'True' is not an integer"),
    "nested": sd("shape=[[1,4,8,8]]&dtype=float32", 400, "malformed_request", "is not an integer"),
    "zero": sd("shape=0,4,8,8&dtype=float32", 422, "invalid_value", r"\[0, 4, 8, 8\] has a size below 1"),
    "negative": sd("shape=-1,4,8,8&dtype=float32", 422, "invalid_value", r"\[-1, 4, 8, 8\] has a size below 1"),
    "two negatives": sd("shape=-1,-4,8,8&dtype=float32", 422, "invalid_value", "has a size below 1"),
    "int64 overflow": sd(f"shape=1,4,{8 + 2**59},8&dtype=float32", 413, "too_large", "limit here is 8192"),
    "int32 overflow": sd(f"shape=1,4,{2**31},2&dtype=float32", 413, "too_large", "limit here is 8192"),
    "overflow of the product": sd(f"shape={2**62},4,8,8&dtype=float32", 413, "too_large", f"batch would be {2**62}"),
    "many digits": sd(f"shape=1,4,8,{'9' * 30}&dtype=float32", 400, "malformed_request", "at most 19 digits"),
    "thousands of digits": sd(f"shape=1,4,8,{'9' * 5000}&dtype=float32", 400, "malformed_request", "at most 19 digits"),
    "rank 1": sd("shape=256&dtype=float32", 422, "latent_mismatch", r"\[256\].*b c h w.*c=4"),
    "rank 2": sd("shape=4,64&dtype=float32", 422, "latent_mismatch", r"\[4, 64\].*b c h w"),
    "rank 5": sd("shape=1,4,1,8,8&dtype=float32", 422, "latent_mismatch", r"\[1, 4, 1, 8, 8\]"),
    "rank 9": sd("shape=1,1,1,1,1,1,4,8,8&dtype=float32", 400, "malformed_request", "9 axes; at most 8"),
    "3 channels": sd("shape=1,3,8,8&dtype=float32", 422, "latent_mismatch", "has 3 channels; model 'sd' takes 4"),
    "16 channels": sd("shape=1,16,4,4&dtype=float32", 422, "latent_mismatch", "has 16 channels; model 'sd' takes 4"),
    "channels last": sd("shape=1,8,8,4&dtype=float32", 422, "latent_mismatch", "has 8 channels; model 'sd' takes 4"),
    "batch": sd("shape=9,4,8,8&dtype=float32", 413, "too_large", "batch would be 9; the limit here is 8"),
    "side": sd("shape=1,4,1,1025&dtype=float32", 413, "too_large", "width would be 8200; the limit here is 8192"),
    "pixels": sd("shape=1,4,600,600&dtype=float32", 413, "too_large", "23040000; the limit here is 16777216"),
    "frames": Bad(
        "/video?shape=1,16,66,1,1&dtype=float16", 413, "too_large", "frames would be 261; the limit here is 257"
    ),
    "4-D to a video model": Bad(
        "/video?shape=1,4,8,8&dtype=float32", 422, "latent_mismatch", r"\[1, 4, 8, 8\].*", LATENT
    ),
}
DTYPES = {
    name: sd(
        f"shape=1,4,8,8&dtype={name}",
        422,
        "invalid_value",
        f"dtype '{re.escape(name)}'.*one of float16, float32, bfloat16$",
    )
    for name in ("float64", "int8", "uint8", "Float32", "torch.float32", "complex64", "__class__", "float32 ", "f4")
}
VALUES = {
    f"{value} in {dtype}": sd(
        f"shape=1,4,8,8&dtype={dtype}", 422, "non_finite_input", "NaN or infin", special(value, dtype, last=last)
    )
    for value in (float("nan"), float("inf"), float("-inf"))
    for dtype, last in (("float32", False), ("float16", True), ("bfloat16", True))
}
# Where others would say 422, we say 400 to a missing size: it belongs to the URL, and no other latent would mend it.
PACKED = {
    "no size": Bad(
        "/flux?shape=1,16,64&dtype=float32",
        400,
        "malformed_request",
        r"\[1, 16, 64\] needs height and width",
        bytes(4096),
    ),
    "no width": Bad(
        "/flux?shape=1,16,64&dtype=float32&height=64", 400, "malformed_request", "needs height and width", bytes(4096)
    ),
    "size that does not fit": Bad(
        "/flux?shape=1,16,64&dtype=float32&height=64&width=128",
        422,
        "latent_mismatch",
        r"16 tokens.*height=64 and width=128 needs 64//16 x 128//16 = 32",
        bytes(4096),
    ),
    "size of zero": Bad(
        "/flux?shape=1,16,64&dtype=float32&height=0&width=64", 422, "invalid_value", "height=0 must be at least 1"
    ),
    "size in words": Bad(
        "/flux?shape=1,16,64&dtype=float32&height=64px&width=64", 400, "malformed_request", "height='64px'"
    ),
    "size that wraps": Bad(
        f"/flux?shape=1,16,64&dtype=float32&height={2**32 + 64}&width=64",
        413,
        "too_large",
        "height would be 4294967360",
    ),
    "packed for another model": sd("shape=1,16,64&dtype=float32", 422, "latent_mismatch", r"\[1, 16, 64\].*with c=4"),
    "un-batched for another model": sd("shape=16,8,8&dtype=float32", 422, "latent_mismatch", r"\[16, 8, 8\].*with c=4"),
    "wrong last axis": Bad("/flux?shape=1,16,63&dtype=float32&height=64&width=64", 422, "latent_mismatch", "63"),
}
PARAMETERS = {
    "typo": sd(f"{SHAPE}&scaling_facor=0.2", 400, "unknown_parameter", "'scaling_facor'.*did you mean scaling_factor"),
    "unknown": sd(f"{SHAPE}&zzz=1", 400, "unknown_parameter", "'zzz' is not known; known are shape, dtype"),
    "twice": sd(f"{SHAPE}&output_type=pt&output_type=pil", 400, "malformed_request", "output_type is given twice"),
    "dtype twice": sd(f"{SHAPE}&dtype=float16", 400, "malformed_request", "dtype is given twice"),
    "factor in words": sd(f"{SHAPE}&scaling_factor=one", 400, "malformed_request", "scaling_factor='one'"),
    "factor of zero": sd(f"{SHAPE}&scaling_factor=0", 422, "invalid_value", "scaling_factor=0 must be at least"),
    "factor NaN": sd(f"{SHAPE}&scaling_factor=nan", 422, "invalid_value", "scaling_factor=nan must be a finite"),
    "factor overflow": sd(f"{SHAPE}&scaling_factor=1e400", 422, "invalid_value", "scaling_factor=1e400 must lie"),
    "factor empty": sd(f"{SHAPE}&scaling_factor=", 400, "malformed_request", "scaling_factor is empty"),
    "shift NaN": sd(f"{SHAPE}&shift_factor=NaN", 422, "invalid_value", "shift_factor=NaN"),
    "boolean": sd(f"{SHAPE}&do_scaling=yes", 400, "malformed_request", "do_scaling='yes'.*True or False"),
    "output type": sd(f"{SHAPE}&output_type=bmp", 422, "invalid_value", "'bmp'.*pil, pt, mp4"),
    "image format": sd(f"{SHAPE}&image_format=bmp", 422, "invalid_value", "'bmp'.*jpg, png, webp"),
    "quality": sd(f"{SHAPE}&quality=101", 422, "invalid_value", "quality=101 must be from 1 to 100"),
    "plan": sd(f"{SHAPE}&plan=magic", 422, "invalid_value", "plan='magic'"),
    "mp4 of a picture": sd(f"{SHAPE}&output_type=mp4", 422, "unsupported_output", "'sd' gives pictures.*video model"),
    "not UTF-8": sd(f"{SHAPE}&plan=%ff", 400, "malformed_request", "UTF-8"),
    "many": sd(f"{SHAPE}&" + "&".join(f"a{i}=1" for i in range(100)), 400, "malformed_request", "102 parameters"),
    "long": sd(f"{SHAPE}&plan={'a' * 9000}", 414, "uri_too_long", "limit is 8192"),
    "terminal codes": sd(
        f"{SHAPE}&plan=%1b[31m%0d%0aset-cookie", 422, "invalid_value", r"plan='\?\[31m\?\?set-cookie'"
    ),
    "markup": sd(f"{SHAPE}&%3Cscript%3E=1", 400, "unknown_parameter", r"'\?script\?'"),
    "posterior to decode": sd(f"{SHAPE}&posterior=mode", 400, "unknown_parameter", "'posterior'"),
    "seed": encode(b"", 422, "invalid_value", "seed=-1 must be", "seed=-1"),
    "posterior": encode(b"", 422, "invalid_value", "'mean'.*sample, mode, parameters", "posterior=mean"),
}
BODIES = {
    "not JSON": as_json(b"{", 400, "malformed_request", "not valid JSON.*inputs"),
    "empty": as_json(b"", 400, "malformed_request", "not valid JSON"),
    "a list": as_json(b"[]", 400, "malformed_request", 'base64 text under "inputs"'),
    "no inputs": as_json(b"{}", 400, "malformed_request", 'base64 text under "inputs"'),
    "inputs not text": as_json(b'{"inputs": 5}', 400, "malformed_request", 'base64 text under "inputs"'),
    "twice": as_json(b'{"inputs": "", "inputs": ""}', 400, "malformed_request", "twice"),
    "not base64": as_json(inputs("!!!!"), 400, "malformed_request", "not valid base64"),
    "padding missing": as_json(inputs("AAA"), 400, "malformed_request", "not valid base64"),
    "white space in base64": as_json(inputs("AAAA\nAAAA"), 400, "malformed_request", "not valid base64"),
    "NaN": as_json(b'{"inputs": NaN}', 400, "malformed_request", "not valid JSON"),
    "deep": as_json(b"[" * 900, 400, "malformed_request", "not valid JSON"),
    "very deep": as_json(b"[" * 100_000, 400, "malformed_request", "more than 1000 values"),
    "a great many values": as_json(b"[" + b"{}," * 100_000 + b"{}]", 400, "malformed_request", "more than 1000 values"),
    "parameters not an object": as_json(inputs("", parameters=[1]), 400, "malformed_request", "'parameters' must be"),
    "unknown parameter inside": as_json(inputs("", parameters={"sahpe": [1]}), 400, "unknown_parameter", "shape"),
    "shape given in both": as_json(
        inputs("", parameters={"dtype": "float32"}), 400, "malformed_request", "dtype is given twice"
    ),
    "shape of text inside": as_json(
        inputs("", parameters={"shape": {"a": 1}, "dtype": "float32"}), 400, "malformed_request", "not an integer", ""
    ),
    "dtype in a list": as_json(
        inputs("", parameters={"shape": [1, 4, 8, 8], "dtype": ["float32"]}), 422, "invalid_value", "dtype", ""
    ),
    "not UTF-8": as_json(b'{"inputs": "\xff"}', 400, "malformed_request", "not valid JSON"),
    "pickle": Bad(
        "/sd/decode",
        415,
        "unsupported_media_type",
        "'application/x-pickle'",
        b"\x80\x04.",
        {"content-type": "application/x-pickle"},
    ),
    "multipart": Bad(
        "/sd/decode",
        415,
        "unsupported_media_type",
        "'multipart/form-data' is not read; expected tensor/binary",
        b"--a",
        {"content-type": "multipart/form-data; boundary=a"},
    ),
    "gzip": Bad(
        f"/sd/decode?{SHAPE}",
        415,
        "unsupported_media_type",
        "'gzip' is not read",
        LATENT,
        {**RAW, "content-encoding": "gzip"},
    ),
    "picture to decode": Bad(
        "/sd/decode", 415, "unsupported_media_type", "'image/png' is a picture", b"", {"content-type": "image/png"}
    ),
}
# What is none of the three formats is 415, whatever its label: the sender has to convert it, not to mend it. A picture
# smaller than a latent's cell is 422 and not enlarged: its latent would be of a picture that nobody sent.
PICTURES = {
    "empty": encode(b"", 400, "malformed_request", "body is empty.*PNG, JPEG or WebP"),
    "noise": encode(bytes(range(256)), 415, "unsupported_media_type", "not a picture; expected PNG, JPEG or WebP"),
    "GIF": encode(picture("GIF"), 415, "unsupported_media_type", "expected PNG, JPEG or WebP"),
    "TIFF": encode(picture("TIFF"), 415, "unsupported_media_type", "expected PNG, JPEG or WebP"),
    "SVG": encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unsupported_media_type", "not a picture"),
    "a URL": encode(b"http://127.0.0.1/a.png", 415, "unsupported_media_type", "not a picture"),
    "PNG cut short": encode(picture("PNG")[:-4000], 422, "invalid_image", "PNG picture is broken or cut short"),
    "JPEG cut short": encode(picture("JPEG")[:-2000], 422, "invalid_image", "JPEG picture is broken or cut short"),
    "WebP cut short": encode(picture("WEBP")[:-1000], 422, "invalid_image", "WEBP picture is broken or cut short"),
    "PNG's first bytes": encode(b"\x89PNG\r\n\x1a\n", 422, "invalid_image", "PNG picture is broken"),
    "JPEG's first bytes": encode(b"\xff\xd8\xff\xe0", 422, "invalid_image", "JPEG picture is broken"),
    "PNG with a wrong checksum": encode(bad_checksum(), 422, "invalid_image", "PNG picture is broken"),
    "PNG without its end": encode(picture("PNG")[:-12], 422, "invalid_image", "PNG picture is broken"),
    "a hundred megapixels": encode(png_header(10_000, 10_000), 413, "too_large", "10000x10000.*16777216"),
    "a long strip": encode(png_header(9000, 1), 413, "too_large", "9000x1.*8192 a side"),
    "the largest claim": encode(png_header(2**31 - 1, 2**31 - 1), 413, "too_large", "2147483647x2147483647"),
    "nothing wide": encode(png_header(0, 5), 422, "invalid_image", "PNG picture is broken"),
    "smaller than a cell": encode(png_header(4, 4), 422, "invalid_image", "4x4 pixels; .* 8x8"),
    "4 channels": encode(
        bytes(256), 422, "latent_mismatch", r"\[1, 4, 8, 8\] is no picture", "shape=1,4,8,8&dtype=uint8"
    ),
    "huge tensor": encode(b"", 413, "too_large", "over the limit of", "shape=1,3,100000,100000&dtype=float32"),
    "NaN": encode(
        np.full(3 * 64, np.nan, np.float32).tobytes(), 422, "non_finite_input", "NaN", "shape=1,3,8,8&dtype=float32"
    ),
    "an Accept of pictures": Bad(
        "/sd/encode",
        406,
        "not_acceptable",
        "'image/png' does not go.*tensor/binary",
        picture("PNG"),
        {"accept": "image/png"},
    ),
}
ACCEPTS = {
    "video for a picture": Bad(
        f"/sd/decode?{SHAPE}", 406, "not_acceptable", "'video/mp4'.*image/jpeg", LATENT, {**RAW, "accept": "video/mp4"}
    ),
    "picture for raw output": Bad(
        f"/sd/decode?{SHAPE}&output_type=pt",
        406,
        "not_acceptable",
        "'image/png' does not go with output_type=pt; expected one of tensor/binary",
        LATENT,
        {**RAW, "accept": "image/png"},
    ),
    "html": Bad(f"/sd/decode?{SHAPE}", 406, "not_acceptable", "'text/html'", LATENT, {**RAW, "accept": "text/html"}),
    "refused": Bad(f"/sd?{SHAPE}", 406, "not_acceptable", "q=0", LATENT, {**RAW, "accept": "*/*;q=0"}),
}
TABLES = {
    "length": LENGTHS,
    "shape": SHAPES,
    "dtype": DTYPES,
    "values": VALUES,
    "packed": PACKED,
    "parameter": PARAMETERS,
    "body": BODIES,
    "picture": PICTURES,
    "accept": ACCEPTS,
}
ALL = {f"{table}: {name}": bad for table, found in TABLES.items() for name, bad in found.items()}
LEAK = re.compile(r"0x[0-9a-f]{6,}|Traceback|\.py\b|site-packages|object at")


@pytest.mark.parametrize("bad", ALL.values(), ids=ALL.keys())
def test_bad_request(live: Any, bad: Bad) -> None:
    """The refusal has its status, its code, the words that help, its request's id, and nothing of the inside."""
    reply = live.post(bad.path, data=bad.body, headers=bad.headers, allow_redirects=False)
    assert reply.status_code == bad.status, reply.text
    found = reply.json()
    assert reply.headers["content-type"] == "application/json"
    assert found["error_type"] == bad.code
    assert re.search(bad.words, found["error"]), found["error"]
    assert found["request_id"] == reply.headers["x-request-id"]
    assert len(reply.content) < 2000
    assert not LEAK.search(reply.text)
    assert reply.text.isprintable()


GOOD = {
    "repeated keys": "shape=1&shape=4&shape=8&shape=8&dtype=float32",
    "a list in brackets": "shape=[1,%204,%208,%208]&dtype=float32",
    "hints of old clients": f"{SHAPE}&input_tensor_type=binary&output_tensor_type=binary&return_type=pil",
    "absent by name": f"{SHAPE}&height=None&width=null&image_format=",
    "a size that means nothing here": f"{SHAPE}&height=24&width=320",
    "un-batched": "shape=4&shape=8&shape=8&dtype=float32",
    "booleans": f"{SHAPE}&do_scaling=false&partial_postprocess=0",
    "a small factor in Python's spelling": f"{SHAPE}&scaling_factor=1e-05",
}


@pytest.mark.parametrize("query", GOOD.values(), ids=GOOD.keys())
def test_strictness_stops_at_known_clients(live: Any, query: str) -> None:
    """What public clients really send is never refused."""
    assert live.post(f"/sd?{query}", data=LATENT, headers=RAW).status_code == 200
