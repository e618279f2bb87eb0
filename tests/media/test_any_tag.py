"""Any metadata: whatever stands in a tag, the pixels are read, and at worst the picture lies as its file."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from remote_vae.errors import InvalidImage
from remote_vae.media.images import read_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")

HEIGHT, WIDTH = 16, 24
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
KINDS = ("JPEG", "PNG", "WEBP")
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
# Those that the imaging library or we look at: sizes, orientation, resolution, text, directories, and any other.
TAGS = (0x100, 0x101, 0x10E, 0x10F, 0x110, 0x112, 0x11A, 0x11B, 0x128, 0x131, 0x132, 0x8769, 0x8825, 0xA005, 0x927C)
MP_TAGS = (0xB000, 0xB001, 0xB002, 0xB003)
PROFILES = [ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes() for name in ("sRGB", "LAB", "XYZ")]
MANY = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def tiff(draw: st.DrawFn, tags: tuple[int, ...] = TAGS) -> bytes:
    """A header and a directory, whose entries may point anywhere, at themselves too, and say anything."""
    order = draw(st.sampled_from("<>"))
    entries, extra = b"", b""
    number = draw(st.integers(0, 6))
    beyond = 8 + 2 + 12 * number + 4
    for _ in range(number):
        tag = draw(st.sampled_from(tags) | st.integers(0, 65_535))
        kind = draw(st.sampled_from(list(SIZES)) | st.integers(0, 65_535))
        count = draw(st.integers(0, 4) | st.sampled_from([2**16, 2**31, 2**32 - 1]))
        size = SIZES.get(kind, 1) * count
        value = draw(st.binary(min_size=4, max_size=4) | st.sampled_from([b"\6\0\0\0", b"\0\6\0\0", b"\0\0\0\x08"]))
        if 4 < size < 64:
            value = struct.pack(f"{order}I", draw(st.just(beyond + len(extra)) | st.integers(0, 2**32 - 1)))
            extra += draw(st.binary(min_size=size, max_size=size) | st.just(bytes(size)))
        entries += struct.pack(f"{order}HHI", tag, kind, count) + value
    mark = b"II*\0" if order == "<" else b"MM\0*"
    number = draw(st.just(number) | st.integers(0, 65_535))
    return (
        mark
        + struct.pack(f"{order}IH", draw(st.just(8) | st.integers(0, 2**32 - 1)), number)
        + entries
        + bytes(4)
        + extra
    )


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """The bytes with a few of them changed, or cut off."""
    data = bytearray(draw(whole))
    for at, value in draw(st.lists(st.tuples(st.integers(0, max(len(data) - 1, 0)), st.integers(0, 255)), max_size=8)):
        if data:
            data[at] = value
    return bytes(data[: draw(st.just(len(data)) | st.integers(0, len(data)))])


def segment(marker: int, body: bytes) -> bytes:
    body = body[:65_000]
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def written(kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, kind, **options)
    return out.getvalue()


def riff(name: bytes, body: bytes, flag: int) -> bytes:
    """A WebP with a further chunk, which its header announces."""
    data = written("WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    at = data.index(b"VP8X") + 8
    data = data[:at] + bytes([data[at] | flag]) + data[at + 1 :]
    data += name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


JPEG, PNG = written("JPEG"), written("PNG")
Place = Callable[[bytes], bytes]
EXIF: dict[str, Place] = {
    "JPEG": lambda body: JPEG[:2] + segment(0xE1, b"Exif\0\0" + body) + JPEG[2:],
    "PNG": lambda body: PNG[:33] + chunk(b"eXIf", body) + PNG[33:],
    "PNG, as ImageMagick": lambda body: (
        PNG[:33]
        + chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n1\n" + body.hex().encode()))
        + PNG[33:]
    ),
    "WebP": lambda body: riff(b"EXIF", body, 0x08),
}
XMP: dict[str, Place] = {
    "JPEG": lambda body: JPEG[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + body) + JPEG[2:],
    "PNG": lambda body: PNG[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0" + body) + PNG[33:],
    "WebP": lambda body: riff(b"XMP ", body, 0x04),
}
ICC: dict[str, Place] = {
    "JPEG": lambda body: JPEG[:2] + segment(0xE2, b"ICC_PROFILE\0\1\1" + body) + JPEG[2:],
    "PNG": lambda body: PNG[:33] + chunk(b"iCCP", b"a\0\0" + zlib.compress(body)) + PNG[33:],
    "WebP": lambda body: riff(b"ICCP", body, 0x20),
}
# Others that the imaging library takes apart by itself.
SEGMENTS = (0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE)
BEGINNINGS = (b"JFIF\0", b"MPF\0", b"Photoshop 3.0\0", b"Adobe", b"ICC_PROFILE\0", b"FPXR\0", b"8BIM\x04\x04", b"")
NAMES = (
    b"tEXt",
    b"zTXt",
    b"iTXt",
    b"gAMA",
    b"cHRM",
    b"sRGB",
    b"pHYs",
    b"tRNS",
    b"sBIT",
    b"bKGD",
    b"acTL",
    b"fcTL",
    b"tIME",
)


def sides(data: bytes) -> set[int]:
    return set(read_image(data, multiple=8, max_pixels=10**6, max_side=4096).pixels.shape[:2])


@pytest.mark.parametrize("place", EXIF.values(), ids=EXIF.keys())
def test_any_exif(place: Place) -> None:
    @MANY
    @given(damaged(tiff()))
    def read(block: bytes) -> None:
        assert sides(place(block)) == {HEIGHT, WIDTH}

    read()


@pytest.mark.parametrize("place", XMP.values(), ids=XMP.keys())
def test_any_xmp(place: Place) -> None:
    good = b'\0\0\0\0<x:xmpmeta><rdf:Description tiff:Orientation="6" xmp:Rating="-1"/></x:xmpmeta>'

    @MANY
    @given(damaged(st.just(good)) | st.binary(max_size=80))
    def read(block: bytes) -> None:
        assert sides(place(block)) == {HEIGHT, WIDTH}

    read()


@pytest.mark.parametrize("place", ICC.values(), ids=ICC.keys())
def test_any_profile(place: Place) -> None:
    @MANY
    @given(damaged(st.sampled_from(PROFILES)) | st.binary(max_size=200))
    def read(profile: bytes) -> None:
        assert sides(place(profile)) == {HEIGHT, WIDTH}

    read()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_any_other(kind: str) -> None:
    """What the imaging library itself takes apart makes a picture unreadable at worst."""
    body = st.binary(max_size=60) | tiff(MP_TAGS) | damaged(tiff(MP_TAGS))

    @MANY
    @given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from(BEGINNINGS), body), min_size=1, max_size=3))
    def read(parts: list[tuple[int, bytes, bytes]]) -> None:
        if kind == "JPEG":
            extra = b"".join(segment(SEGMENTS[n % len(SEGMENTS)], begin + data) for n, begin, data in parts)
            picture = JPEG[:2] + extra + JPEG[2:]
        else:
            picture = PNG[:33] + b"".join(chunk(NAMES[n % len(NAMES)], data) for n, _, data in parts) + PNG[33:]
        try:
            assert sides(picture) == {HEIGHT, WIDTH}
        except InvalidImage:
            return

    read()
