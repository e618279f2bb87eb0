"""The requests of every public client, byte for byte, and what each of them means."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_vae.protocol.frame import TensorFrame
from remote_vae.protocol.messages import (
    DecodeOptions,
    DecodeRequest,
    EncodeOptions,
    EncodeRequest,
    Form,
    ImageFormat,
    Operation,
    OutputType,
    Posterior,
    Scaling,
    ScalingMode,
)
from remote_vae.protocol.readers import SMALLEST_FACTOR
from remote_vae.protocol.wire import parse_decode, parse_encode, parse_head, render_request

Message = DecodeRequest | EncodeRequest

ONE_F16 = b"\x00\x3c"  # 1.0, little-endian
ONE_BF16 = b"\x80\x3f"
ONE_F32 = b"\x00\x00\x80\x3f"
PNG = bytes.fromhex(  # one grey pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)

SD_LATENT = TensorFrame("float16", (1, 4, 64, 64), ONE_F16 * 16384)
SMALL_LATENT = TensorFrame("float16", (1, 4, 2, 2), ONE_F16 * 16)
SMALL_BASE64 = b"ADwAPAA8ADwAPAA8ADwAPAA8ADwAPAA8ADwAPAA8ADw="
NONE = Scaling(ScalingMode.NONE)
MODEL = Scaling(ScalingMode.MODEL)
FLUX = Scaling(ScalingMode.GIVEN, 0.3611, 0.1159)


@dataclass(frozen=True)
class Golden:
    """A request as it crosses the network, and the message that it is."""

    query: bytes
    headers: dict[str, str]
    body: bytes
    message: Message
    path: str = "/"


def jpeg(scaling: Scaling, **options: object) -> DecodeOptions:
    """The options of diffusers' defaults."""
    return replace(DecodeOptions(scaling=scaling, image_format=ImageFormat.JPG), **options)  # type: ignore[arg-type]


TO_JPEG = {"content-type": "tensor/binary", "accept": "image/jpeg"}
TO_TENSOR = {"content-type": "tensor/binary", "accept": "tensor/binary"}
JPEG_QUERY = b"image_format=jpg&output_type=pil&partial_postprocess=False&"

GOLDEN = {
    "P0: everything in JSON": Golden(
        b"",
        {"content-type": "application/json", "accept": "image/jpeg"},
        b'{"inputs": "' + SMALL_BASE64 + b'", "parameters": {"shape": [1, 4, 2, 2], "dtype": "float16"}}',
        DecodeRequest(None, SMALL_LATENT, DecodeOptions(scaling=MODEL), Form.JPG),
    ),
    "P0: with height and width": Golden(
        b"",
        {"content-type": "application/json"},
        b'{"inputs": "' + SMALL_BASE64 + b'", "parameters": {"shape": [1, 1, 16], "dtype": "float16", '
        b'"height": 16, "width": 16}}',
        DecodeRequest(
            None,
            TensorFrame("float16", (1, 1, 16), ONE_F16 * 16),
            DecodeOptions(scaling=MODEL, height=16, width=16),
            Form.JPG,
        ),
    ),
    "P1: base64, parameters in the query": Golden(
        b"do_scaling=True&output_type=pt&partial_postprocess=False&shape=1&shape=4&shape=2&shape=2&dtype=float16",
        {"content-type": "tensor/base64", "accept": "tensor/base64"},
        b'{"inputs": "' + SMALL_BASE64 + b'"}',
        DecodeRequest(None, SMALL_LATENT, DecodeOptions(scaling=MODEL, output_type=OutputType.PT), Form.BASE64),
    ),
    "P1: base64 in, binary out": Golden(
        b"do_scaling=True&output_type=pt&partial_postprocess=True&shape=1&shape=4&shape=2&shape=2&dtype=float16",
        {"content-type": "tensor/base64", "accept": "tensor/binary"},
        b'{"inputs": "' + SMALL_BASE64 + b'"}',
        DecodeRequest(
            None,
            SMALL_LATENT,
            DecodeOptions(scaling=MODEL, output_type=OutputType.PT, partial_postprocess=True),
            Form.BINARY,
        ),
    ),
    "P2: default": Golden(
        JPEG_QUERY + b"shape=1&shape=4&shape=64&shape=64&dtype=float16&do_scaling=True",
        TO_JPEG,
        ONE_F16 * 16384,
        DecodeRequest(None, SD_LATENT, jpeg(MODEL), Form.JPG),
    ),
    "P2: with a factor": Golden(
        JPEG_QUERY + b"shape=1&shape=4&shape=64&shape=64&dtype=float16&scaling_factor=0.18215",
        TO_JPEG,
        ONE_F16 * 16384,
        DecodeRequest(None, SD_LATENT, jpeg(Scaling(ScalingMode.GIVEN, 0.18215)), Form.JPG),
    ),
    "P2: do_scaling=False, so nothing is said about scaling": Golden(
        JPEG_QUERY + b"shape=1&shape=4&shape=64&shape=64&dtype=float16",
        TO_JPEG,
        ONE_F16 * 16384,
        DecodeRequest(None, SD_LATENT, jpeg(NONE), Form.JPG),
    ),
    "P2: pil with a processor": Golden(
        JPEG_QUERY + b"shape=1&shape=4&shape=64&shape=64&dtype=float16&do_scaling=True",
        TO_TENSOR,
        ONE_F16 * 16384,
        DecodeRequest(None, SD_LATENT, jpeg(MODEL), Form.BINARY),
    ),
    "P2: Flux, packed": Golden(
        JPEG_QUERY + b"shape=1&shape=1024&shape=64&dtype=bfloat16&scaling_factor=0.3611&shift_factor=0.1159"
        b"&height=512&width=512",
        TO_JPEG,
        ONE_BF16 * 65536,
        DecodeRequest(
            None,
            TensorFrame("bfloat16", (1, 1024, 64), ONE_BF16 * 65536),
            jpeg(FLUX, height=512, width=512),
            Form.JPG,
        ),
    ),
    "P2: Flux, unpacked": Golden(
        JPEG_QUERY + b"shape=1&shape=16&shape=64&shape=64&dtype=bfloat16&scaling_factor=0.3611&shift_factor=0.1159",
        TO_JPEG,
        ONE_BF16 * 65536,
        DecodeRequest(None, TensorFrame("bfloat16", (1, 16, 64, 64), ONE_BF16 * 65536), jpeg(FLUX), Form.JPG),
    ),
    "P2: Hunyuan to mp4": Golden(
        b"image_format=jpg&output_type=mp4&partial_postprocess=False&shape=1&shape=16&shape=3&shape=40&shape=64"
        b"&dtype=float16&do_scaling=True",
        {"content-type": "tensor/binary", "accept": "text/plain"},
        ONE_F16 * 122880,
        DecodeRequest(
            None,
            TensorFrame("float16", (1, 16, 3, 40, 64), ONE_F16 * 122880),
            jpeg(MODEL, output_type=OutputType.MP4),
            Form.MP4,
        ),
    ),
    "P2: encode a picture": Golden(
        b"scaling_factor=0.18215",
        {"accept": "*/*"},
        PNG,
        EncodeRequest(None, PNG, EncodeOptions(scaling=Scaling(ScalingMode.GIVEN, 0.18215)), Form.BINARY),
    ),
    "P2: encode a tensor": Golden(
        b"scaling_factor=0.3611&shift_factor=0.1159&shape=1&shape=3&shape=64&shape=64&dtype=float16",
        {"accept": "*/*"},
        ONE_F16 * 12288,
        EncodeRequest(
            None, TensorFrame("float16", (1, 3, 64, 64), ONE_F16 * 12288), EncodeOptions(scaling=FLUX), Form.BINARY
        ),
    ),
    "SD.Next: three axes, the batch dropped": Golden(
        b"image_format=png&output_type=pil&shape=16&shape=64&shape=64&dtype=bfloat16&width=512&height=512"
        b"&scaling_factor=0.3611&shift_factor=0.1159",
        {"content-type": "tensor/binary", "accept": "image/png"},
        ONE_BF16 * 65536,
        DecodeRequest(
            None,
            TensorFrame("bfloat16", (16, 64, 64), ONE_BF16 * 65536),
            DecodeOptions(scaling=FLUX, image_format=ImageFormat.PNG, height=512, width=512),
            Form.PNG,
        ),
    ),
    "SD.Next: packed with an extra leading 1": Golden(
        b"do_scaling=True&output_type=pil&shape=1&shape=1&shape=1024&shape=64&dtype=bfloat16&width=512&height=512",
        TO_JPEG,
        ONE_BF16 * 65536,
        DecodeRequest(
            None,
            TensorFrame("bfloat16", (1, 1, 1024, 64), ONE_BF16 * 65536),
            DecodeOptions(scaling=MODEL, height=512, width=512),
            Form.JPG,
        ),
    ),
    "ComfyUI: Hunyuan with a wrong height and width": Golden(
        b"do_scaling=True&output_type=pt&partial_postprocess=True&shape=1&shape=16&shape=3&shape=40&shape=64"
        b"&dtype=float32&height=24&width=320",
        TO_TENSOR,
        ONE_F32 * 122880,
        DecodeRequest(
            None,
            TensorFrame("float32", (1, 16, 3, 40, 64), ONE_F32 * 122880),
            DecodeOptions(scaling=MODEL, output_type=OutputType.PT, partial_postprocess=True, height=24, width=320),
            Form.BINARY,
        ),
    ),
}


def parse(path: str, query: bytes, headers: dict[str, str], body: bytes) -> Message:
    """The server's road from bytes to message."""
    head = parse_head(path, query, headers)
    return parse_decode(head, body) if head.operation is Operation.DECODE else parse_encode(head, body)


@pytest.mark.parametrize("golden", GOLDEN.values(), ids=GOLDEN.keys())
def test_every_public_client_is_understood(golden: Golden) -> None:
    """A request of a public client means exactly one message, down to every default."""
    assert parse(golden.path, golden.query, golden.headers, golden.body) == golden.message


@pytest.mark.parametrize("golden", GOLDEN.values(), ids=GOLDEN.keys())
@pytest.mark.parametrize(("suffix", "model"), [("", None), ("predict", None), ("flux", "flux"), ("flux/", "flux")])
def test_a_client_may_be_given_any_address(golden: Golden, suffix: str, model: str | None) -> None:
    """The path chooses the model and changes nothing else about a public client's request."""
    found = parse(f"/{suffix}", golden.query, golden.headers, golden.body)
    assert found == replace(golden.message, model=model)


RENDERED = {
    "decode, all defaults": (
        DecodeRequest(None, SMALL_LATENT, DecodeOptions(), Form.JPG),
        "/decode",
        "output_type=pil&partial_postprocess=False&shape=1&shape=4&shape=2&shape=2&dtype=float16",
        {"content-type": "tensor/binary", "accept": "image/jpeg"},
        ONE_F16 * 16,
    ),
    "decode, the model's own scaling": (
        DecodeRequest("flux", SMALL_LATENT, jpeg(MODEL), Form.JPG),
        "/flux/decode",
        "do_scaling=True&output_type=pil&partial_postprocess=False&image_format=jpg"
        "&shape=1&shape=4&shape=2&shape=2&dtype=float16",
        {"content-type": "tensor/binary", "accept": "image/jpeg"},
        ONE_F16 * 16,
    ),
    "decode, everything said": (
        DecodeRequest(
            "flux",
            SMALL_LATENT,
            DecodeOptions(FLUX, OutputType.PT, ImageFormat.WEBP, True, 80, 16, 32, "strips"),
            Form.BASE64,
        ),
        "/flux/decode",
        "scaling_factor=0.3611&shift_factor=0.1159&output_type=pt&partial_postprocess=True&quality=80"
        "&image_format=webp&height=16&width=32&plan=strips&shape=1&shape=4&shape=2&shape=2&dtype=float16",
        {"content-type": "tensor/binary", "accept": "tensor/base64"},
        ONE_F16 * 16,
    ),
    "encode a picture": (
        EncodeRequest(None, PNG, EncodeOptions(Scaling(ScalingMode.GIVEN, 1e-05)), Form.BINARY),
        "/encode",
        "scaling_factor=1e-05",
        {"content-type": "application/octet-stream", "accept": "tensor/binary"},
        PNG,
    ),
    "encode a tensor": (
        EncodeRequest("sdxl", SMALL_LATENT, EncodeOptions(MODEL, Posterior.SAMPLE, 7, "whole"), Form.BINARY),
        "/sdxl/encode",
        "do_scaling=True&posterior=sample&seed=7&plan=whole&shape=1&shape=4&shape=2&shape=2&dtype=float16",
        {"content-type": "application/octet-stream", "accept": "tensor/binary"},
        ONE_F16 * 16,
    ),
}


@pytest.mark.parametrize(("message", "path", "query", "headers", "body"), RENDERED.values(), ids=RENDERED.keys())
def test_our_own_client_sends_these_bytes(
    message: Message, path: str, query: str, headers: dict[str, str], body: bytes
) -> None:
    """A rendered request is these bytes, so that a change of the dialect cannot slip through."""
    assert render_request(message) == (path, query, headers, body)


factors = st.floats(SMALLEST_FACTOR, 1e6) | st.floats(-1e6, -SMALLEST_FACTOR)
shifts = st.floats(-1e6, 1e6)
given_scalings = st.builds(Scaling, st.just(ScalingMode.GIVEN), factors, st.none() | shifts) | st.builds(
    Scaling, st.just(ScalingMode.GIVEN), st.none(), shifts
)
scalings = st.just(NONE) | st.just(MODEL) | given_scalings
plans = st.sampled_from([None, "whole", "strips", "strips-recompute", "tiles"])
models = st.none() | st.sampled_from(["flux", "sd1", "Wan2.1", "a"])
sides = st.none() | st.integers(1, 10**18)
TENSORS = (Form.BINARY, Form.BASE64)


@st.composite
def frames(draw: st.DrawFn, dtypes: tuple[str, ...]) -> TensorFrame:
    """A frame whose dtype, shape and bytes agree."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=5)))
    dtype = draw(st.sampled_from(dtypes))
    count = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}[dtype]
    for size in shape:
        count *= size
    return TensorFrame(dtype, shape, draw(st.binary(min_size=count, max_size=count)))


@st.composite
def decodes(draw: st.DrawFn) -> DecodeRequest:
    """A decode with any options, and a form that goes with them."""
    options = DecodeOptions(
        scaling=draw(scalings),
        output_type=draw(st.sampled_from(OutputType)),
        image_format=draw(st.none() | st.sampled_from(ImageFormat)),
        partial_postprocess=draw(st.booleans()),
        quality=draw(st.integers(1, 100)),
        height=draw(sides),
        width=draw(sides),
        plan=draw(plans),
    )
    pictures = {ImageFormat.JPG: Form.JPG, ImageFormat.PNG: Form.PNG, ImageFormat.WEBP: Form.WEBP}
    forms: tuple[Form, ...] = TENSORS
    if options.output_type is OutputType.MP4:
        forms = (Form.MP4,)
    elif options.output_type is OutputType.PIL:
        forms += (pictures[options.image_format],) if options.image_format else tuple(pictures.values())
    latent = draw(frames(("float16", "float32", "bfloat16")))
    return DecodeRequest(draw(models), latent, options, draw(st.sampled_from(forms)))


encodes = st.builds(
    EncodeRequest,
    models,
    st.binary(min_size=1, max_size=64) | frames(("float16", "float32", "bfloat16", "uint8")),
    st.builds(
        EncodeOptions, scalings, st.none() | st.sampled_from(Posterior), st.none() | st.integers(0, 2**63 - 1), plans
    ),
    st.sampled_from(TENSORS),
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(decodes() | encodes)
def test_what_is_rendered_parses_back(message: Message) -> None:
    """Parsing a rendered request gives the message that was rendered, whatever its options."""
    path, query, headers, body = render_request(message)
    assert parse(path, query.encode("ascii"), headers, bytes(body)) == message
