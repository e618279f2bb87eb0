"""The requests of every public client, byte for byte, and what each of them means."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_vae.protocol.kinds import SMALLEST_FACTOR
from remote_vae.protocol.messages import DecodeRequest, EncodeRequest, Operation
from remote_vae.protocol.options import DECODE_ROWS, ENCODE_ROWS, complete
from remote_vae.protocol.wire import parse_decode, parse_encode, parse_head, render_request
from remote_vae.values import FORMATS, IMAGE_FORMATS, Posterior, Scaling, ScalingMode, Tensor

Message = DecodeRequest | EncodeRequest

ONE_F16 = b"\x00\x3c"  # 1.0, little-endian
ONE_BF16 = b"\x80\x3f"
ONE_F32 = b"\x00\x00\x80\x3f"
PNG = bytes.fromhex(  # one grey pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)

SD_LATENT = Tensor("float16", (1, 4, 64, 64), ONE_F16 * 16384)
SMALL_LATENT = Tensor("float16", (1, 4, 2, 2), ONE_F16 * 16)
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


Parts = tuple[Scaling, dict[str, object]]


def decode_options(scaling: Scaling = NONE, **options: object) -> Parts:
    return scaling, complete(options, DECODE_ROWS)


def encode_options(scaling: Scaling = NONE, **options: object) -> Parts:
    return scaling, complete(options, ENCODE_ROWS)


def decode(model: str | None, latent: Tensor, parts: Parts, format_: str) -> DecodeRequest:
    return DecodeRequest(model, latent, *parts, FORMATS[format_])  # type: ignore[arg-type]


def encode(model: str | None, image: bytes | Tensor, parts: Parts, format_: str) -> EncodeRequest:
    return EncodeRequest(model, image, *parts, FORMATS[format_])  # type: ignore[arg-type]


def jpeg(scaling: Scaling, **options: object) -> Parts:
    """The options of diffusers' defaults."""
    return decode_options(scaling, image_format="jpg", **options)


TO_JPEG = {"content-type": "tensor/binary", "accept": "image/jpeg"}
TO_TENSOR = {"content-type": "tensor/binary", "accept": "tensor/binary"}
JPEG_QUERY = b"image_format=jpg&output_type=pil&partial_postprocess=False&"

GOLDEN = {
    "P0: everything in JSON": Golden(
        b"",
        {"content-type": "application/json", "accept": "image/jpeg"},
        b'{"inputs": "' + SMALL_BASE64 + b'", "parameters": {"shape": [1, 4, 2, 2], "dtype": "float16"}}',
        decode(None, SMALL_LATENT, decode_options(scaling=MODEL), "jpg"),
    ),
    "P0: with height and width": Golden(
        b"",
        {"content-type": "application/json"},
        b'{"inputs": "' + SMALL_BASE64 + b'", "parameters": {"shape": [1, 1, 16], "dtype": "float16", '
        b'"height": 16, "width": 16}}',
        decode(
            None,
            Tensor("float16", (1, 1, 16), ONE_F16 * 16),
            decode_options(scaling=MODEL, height=16, width=16),
            "jpg",
        ),
    ),
    "P1: base64, parameters in the query": Golden(
        b"do_scaling=True&output_type=pt&partial_postprocess=False&shape=1&shape=4&shape=2&shape=2&dtype=float16",
        {"content-type": "tensor/base64", "accept": "tensor/base64"},
        b'{"inputs": "' + SMALL_BASE64 + b'"}',
        decode(None, SMALL_LATENT, decode_options(scaling=MODEL, output_type="pt"), "base64"),
    ),
    "P1: base64 in, binary out": Golden(
        b"do_scaling=True&output_type=pt&partial_postprocess=True&shape=1&shape=4&shape=2&shape=2&dtype=float16",
        {"content-type": "tensor/base64", "accept": "tensor/binary"},
        b'{"inputs": "' + SMALL_BASE64 + b'"}',
        decode(
            None,
            SMALL_LATENT,
            decode_options(scaling=MODEL, output_type="pt", partial_postprocess=True),
            "binary",
        ),
    ),
    "P2: default": Golden(
        JPEG_QUERY + b"shape=1&shape=4&shape=64&shape=64&dtype=float16&do_scaling=True",
        TO_JPEG,
        ONE_F16 * 16384,
        decode(None, SD_LATENT, jpeg(MODEL), "jpg"),
    ),
    "P2: with a factor": Golden(
        JPEG_QUERY + b"shape=1&shape=4&shape=64&shape=64&dtype=float16&scaling_factor=0.18215",
        TO_JPEG,
        ONE_F16 * 16384,
        decode(None, SD_LATENT, jpeg(Scaling(ScalingMode.GIVEN, 0.18215)), "jpg"),
    ),
    "P2: do_scaling=False, so nothing is said about scaling": Golden(
        JPEG_QUERY + b"shape=1&shape=4&shape=64&shape=64&dtype=float16",
        TO_JPEG,
        ONE_F16 * 16384,
        decode(None, SD_LATENT, jpeg(NONE), "jpg"),
    ),
    "P2: pil with a processor": Golden(
        JPEG_QUERY + b"shape=1&shape=4&shape=64&shape=64&dtype=float16&do_scaling=True",
        TO_TENSOR,
        ONE_F16 * 16384,
        decode(None, SD_LATENT, jpeg(MODEL), "binary"),
    ),
    "P2: Flux, packed": Golden(
        JPEG_QUERY + b"shape=1&shape=1024&shape=64&dtype=bfloat16&scaling_factor=0.3611&shift_factor=0.1159"
        b"&height=512&width=512",
        TO_JPEG,
        ONE_BF16 * 65536,
        decode(
            None,
            Tensor("bfloat16", (1, 1024, 64), ONE_BF16 * 65536),
            jpeg(FLUX, height=512, width=512),
            "jpg",
        ),
    ),
    "P2: Flux, unpacked": Golden(
        JPEG_QUERY + b"shape=1&shape=16&shape=64&shape=64&dtype=bfloat16&scaling_factor=0.3611&shift_factor=0.1159",
        TO_JPEG,
        ONE_BF16 * 65536,
        decode(None, Tensor("bfloat16", (1, 16, 64, 64), ONE_BF16 * 65536), jpeg(FLUX), "jpg"),
    ),
    "P2: Hunyuan to mp4": Golden(
        b"image_format=jpg&output_type=mp4&partial_postprocess=False&shape=1&shape=16&shape=3&shape=40&shape=64"
        b"&dtype=float16&do_scaling=True",
        {"content-type": "tensor/binary", "accept": "text/plain"},
        ONE_F16 * 122880,
        decode(
            None,
            Tensor("float16", (1, 16, 3, 40, 64), ONE_F16 * 122880),
            jpeg(MODEL, output_type="mp4"),
            "mp4",
        ),
    ),
    "P2: encode a picture": Golden(
        b"scaling_factor=0.18215",
        {"accept": "*/*"},
        PNG,
        encode(None, PNG, encode_options(scaling=Scaling(ScalingMode.GIVEN, 0.18215)), "binary"),
    ),
    "P2: encode a tensor": Golden(
        b"scaling_factor=0.3611&shift_factor=0.1159&shape=1&shape=3&shape=64&shape=64&dtype=float16",
        {"accept": "*/*"},
        ONE_F16 * 12288,
        encode(None, Tensor("float16", (1, 3, 64, 64), ONE_F16 * 12288), encode_options(scaling=FLUX), "binary"),
    ),
    "SD.Next: three axes, the batch dropped": Golden(
        b"image_format=png&output_type=pil&shape=16&shape=64&shape=64&dtype=bfloat16&width=512&height=512"
        b"&scaling_factor=0.3611&shift_factor=0.1159",
        {"content-type": "tensor/binary", "accept": "image/png"},
        ONE_BF16 * 65536,
        decode(
            None,
            Tensor("bfloat16", (16, 64, 64), ONE_BF16 * 65536),
            decode_options(scaling=FLUX, image_format="png", height=512, width=512),
            "png",
        ),
    ),
    "SD.Next: packed with an extra leading 1": Golden(
        b"do_scaling=True&output_type=pil&shape=1&shape=1&shape=1024&shape=64&dtype=bfloat16&width=512&height=512",
        TO_JPEG,
        ONE_BF16 * 65536,
        decode(
            None,
            Tensor("bfloat16", (1, 1, 1024, 64), ONE_BF16 * 65536),
            decode_options(scaling=MODEL, height=512, width=512),
            "jpg",
        ),
    ),
    "ComfyUI: Hunyuan with a wrong height and width": Golden(
        b"do_scaling=True&output_type=pt&partial_postprocess=True&shape=1&shape=16&shape=3&shape=40&shape=64"
        b"&dtype=float32&height=24&width=320",
        TO_TENSOR,
        ONE_F32 * 122880,
        decode(
            None,
            Tensor("float32", (1, 16, 3, 40, 64), ONE_F32 * 122880),
            decode_options(scaling=MODEL, output_type="pt", partial_postprocess=True, height=24, width=320),
            "binary",
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
        decode(None, SMALL_LATENT, decode_options(), "jpg"),
        "/decode",
        "output_type=pil&partial_postprocess=False&shape=1&shape=4&shape=2&shape=2&dtype=float16",
        {"content-type": "tensor/binary", "accept": "image/jpeg"},
        ONE_F16 * 16,
    ),
    "decode, the model's own scaling": (
        decode("flux", SMALL_LATENT, jpeg(MODEL), "jpg"),
        "/flux/decode",
        "do_scaling=True&output_type=pil&partial_postprocess=False&image_format=jpg"
        "&shape=1&shape=4&shape=2&shape=2&dtype=float16",
        {"content-type": "tensor/binary", "accept": "image/jpeg"},
        ONE_F16 * 16,
    ),
    "decode, everything said": (
        decode(
            "flux",
            SMALL_LATENT,
            decode_options(
                FLUX,
                output_type="pt",
                image_format="webp",
                partial_postprocess=True,
                quality=80,
                height=16,
                width=32,
                plan="strips",
            ),
            "base64",
        ),
        "/flux/decode",
        "scaling_factor=0.3611&shift_factor=0.1159&output_type=pt&partial_postprocess=True&quality=80"
        "&image_format=webp&height=16&width=32&plan=strips&shape=1&shape=4&shape=2&shape=2&dtype=float16",
        {"content-type": "tensor/binary", "accept": "tensor/base64"},
        ONE_F16 * 16,
    ),
    "encode a picture": (
        encode(None, PNG, encode_options(Scaling(ScalingMode.GIVEN, 1e-05)), "binary"),
        "/encode",
        "scaling_factor=1e-05",
        {"content-type": "application/octet-stream", "accept": "tensor/binary"},
        PNG,
    ),
    "encode a tensor": (
        encode("sdxl", SMALL_LATENT, encode_options(MODEL, posterior="sample", seed=7, plan="whole"), "binary"),
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
TENSORS = ("binary", "base64")


@st.composite
def frames(draw: st.DrawFn, dtypes: tuple[str, ...]) -> Tensor:
    """A frame whose dtype, shape and bytes agree."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=5)))
    dtype = draw(st.sampled_from(dtypes))
    count = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}[dtype]
    for size in shape:
        count *= size
    return Tensor(dtype, shape, draw(st.binary(min_size=count, max_size=count)))


@st.composite
def decodes(draw: st.DrawFn) -> DecodeRequest:
    """A decode with any options, and a format that goes with them."""
    scaling, options = decode_options(
        draw(scalings),
        output_type=draw(st.sampled_from(["pil", "pt", "mp4"])),
        image_format=draw(st.none() | st.sampled_from(IMAGE_FORMATS)),
        partial_postprocess=draw(st.booleans()),
        quality=draw(st.integers(1, 100)),
        height=draw(sides),
        width=draw(sides),
        plan=draw(plans),
    )
    formats: tuple[str, ...] = TENSORS
    if options["output_type"] == "mp4":
        formats = ("mp4",)
    elif options["output_type"] == "pil":
        formats += (str(options["image_format"]),) if options["image_format"] else IMAGE_FORMATS
    latent = draw(frames(("float16", "float32", "bfloat16")))
    return decode(draw(models), latent, (scaling, options), draw(st.sampled_from(formats)))


encodes = st.builds(
    encode,
    models,
    st.binary(min_size=1, max_size=64) | frames(("float16", "float32", "bfloat16", "uint8")),
    st.builds(
        encode_options,
        scalings,
        posterior=st.none() | st.sampled_from(list(map(str, Posterior))),
        seed=st.none() | st.integers(0, 2**63 - 1),
        plan=plans,
    ),
    st.sampled_from(TENSORS),
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(decodes() | encodes)
def test_what_is_rendered_parses_back(message: Message) -> None:
    """Parsing a rendered request gives the message that was rendered, whatever its options."""
    path, query, headers, body = render_request(message)
    assert parse(path, query.encode("ascii"), headers, bytes(body)) == message
