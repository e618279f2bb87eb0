"""Metadata is not pixels: however odd it is, the picture is read, and turned if its orientation can be read."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from remote_vae.client.pictures import write_png
from remote_vae.errors import InvalidImage
from remote_vae.media.images import read_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # of tags that it skips

WIDTH, HEIGHT = 48, 32
Y, X = np.mgrid[:HEIGHT, :WIDTH]
PIXELS = np.stack([X * 5, Y * 7, 255 - X * 3 - Y], axis=-1).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)
KINDS = ("JPEG", "PNG", "WEBP")
ENTRY = 12


def written(kind: str = "PNG", **options: object) -> bytes:
    out = BytesIO()
    PICTURE.save(out, kind, **options)
    return out.getvalue()


def read(data: bytes) -> np.ndarray:
    return read_image(data, multiple=8, max_pixels=10**6, max_side=4096).pixels


def exif(*entries: tuple[int, int, int, bytes], extra: bytes = b"", order: str = "<") -> bytes:
    """One directory of tag, type, count and value; `extra` begins where `beyond` says."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in sorted(entries))
    return b"Exif\0\0" + mark + struct.pack(f"{order}IH", 8, len(entries)) + body + bytes(4) + extra


def beyond(entries: int) -> bytes:
    return struct.pack("<I", 8 + 2 + ENTRY * entries + 4)


def turned(value: int = 6, *, order: str = "<", kind: int = 3) -> tuple[int, int, int, bytes]:
    layout = {1: "Bxxx", 3: "Hxx", 4: "I"}[kind]
    return 0x112, kind, 1, struct.pack(order + layout, value)


ODD = {
    "text for a number": exif(turned(), (0x11A, 2, 3, b"72\0\0")),
    "a number for text": exif((0x110, 5, 1, beyond(2)), turned(), extra=struct.pack("<II", 1, 2)),
    "shorts for text": exif(turned(), (0x13B, 3, 2, struct.pack("<HH", 1, 2))),
    "a negative position": exif(turned(), (0x213, 9, 1, struct.pack("<i", -1))),
    "not a number": exif(turned(), (0x13E, 12, 1, beyond(2)), extra=struct.pack("<d", float("nan"))),
    "nothing over nothing": exif(turned(), (0x11A, 5, 1, beyond(2)), extra=bytes(8)),
    "a value beyond the end": exif(turned(), (0x10F, 2, 900, struct.pack("<I", 70_000))),
    "a type that does not exist": exif(turned(), (0x9000, 77, 1, bytes(4))),
    "a directory that points to itself": exif(turned(), (0x8769, 4, 1, struct.pack("<I", 8))),
    "the other byte order": exif(turned(order=">"), order=">"),
    "an orientation of four bytes": exif(turned(kind=4)),
    "an orientation of one byte": exif(turned(kind=1)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ODD)
def test_an_odd_tag_does_not_matter(name: str, kind: str) -> None:
    """A photograph is turned as its orientation says, whatever stands beside it."""
    assert read(written(kind, exif=ODD[name])).shape == (WIDTH, HEIGHT, 3)


BROKEN = {
    "no EXIF": b"Exif\0\0not an EXIF block",
    "nothing": b"Exif\0\0",
    "no directory": b"Exif\0\0II*\0" + struct.pack("<I", 2**32 - 1),
    "fewer entries than it says": b"Exif\0\0II*\0" + struct.pack("<IH", 8, 65_535) + bytes(50),
    "an orientation of 0": exif(turned(0)),
    "an orientation of 9": exif(turned(9)),
    "an orientation as text": exif((0x112, 2, 2, b"6\0\0\0")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_ignored(name: str, kind: str) -> None:
    """The picture is read as it lies."""
    assert read(written(kind, exif=BROKEN[name])).shape == (HEIGHT, WIDTH, 3)


def chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    sum_ = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", sum_)


def with_chunk(extra: bytes) -> bytes:
    """A PNG with something behind its header."""
    png = written()
    return png[:33] + extra + png[33:]


HEX = exif(turned()).hex().encode()
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
CHUNKS = {
    "EXIF that is none": (chunk(b"eXIf", b"hello"), False),
    "a display's large profile": (chunk(b"iCCP", b"display\0\0" + zlib.compress(PROFILE + bytes(2_000_000))), False),
    "a profile that is none": (chunk(b"iCCP", b"x"), False),
    "text of 100 MB": (chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000))), False),
    "EXIF of 100 MB": (chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"0" * 100_000_000)), False),
    "text that is none": (chunk(b"iTXt", b"\xff"), False),
    "a gamma of zero": (chunk(b"gAMA", bytes(4)), False),
    "a size of pixels of zero": (chunk(b"pHYs", bytes(9)), False),
    "a chunk that nobody knows": (chunk(b"abCd", bytes(70_000)), False),
    "a wrong checksum of text": (chunk(b"tEXt", b"Comment\0hello", checksum=7), False),
    "ImageMagick's EXIF": (
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n      %d\n%b\n" % (len(HEX) // 2, HEX))),
        True,
    ),
    "ImageMagick's EXIF, broken": (
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n      10\n" + b"zz" * 10)),
        False,
    ),
    "XMP": (chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP), True),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_that_are_no_pixels(name: str) -> None:
    """They make no readable PNG unreadable, and turn it only if they say so."""
    extra, turns = CHUNKS[name]
    found = read(with_chunk(extra))
    assert np.array_equal(found, np.rot90(PIXELS, -1) if turns else PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_the_orientation_of_xmp(kind: str) -> None:
    """It counts if there is no EXIF that says how the picture lies."""
    assert read(written(kind, xmp=XMP)).shape == (WIDTH, HEIGHT, 3)
    assert read(written(kind, xmp=XMP, exif=exif(turned(3)))).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_opened_picture_lies_as_its_file(kind: str) -> None:
    """The client sends the orientation of a picture that the imaging library has opened, and no odd tag stops it."""
    for block in (exif(turned()), *ODD.values(), BROKEN["no EXIF"]):
        data = written(kind, exif=block, **({} if kind == "PNG" else {"quality": 100}))
        opened = Image.open(BytesIO(data))
        assert np.array_equal(read(write_png(opened)), read(data))


def test_colours_from_no_palette() -> None:
    """A PNG whose pixels need a palette that it has not is broken, which the imaging library finds by an assertion."""
    out = BytesIO()
    PICTURE.quantize(4).save(out, "PNG")
    data = out.getvalue()
    start = data.index(b"PLTE") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4])
    with pytest.raises(InvalidImage, match="broken"):
        read(data[:start] + data[end:])


@pytest.mark.parametrize("name", [b"abCd", b"IDAT", b"tEXt"])
def test_millions_of_chunks(name: bytes) -> None:
    """A PNG of nothing but empty chunks is refused before it takes seconds or gigabytes; one of many chunks is read."""
    with pytest.raises(InvalidImage, match="broken"):
        read(with_chunk(chunk(name, b"") * 4_000_000))
    if name == b"abCd":
        assert np.array_equal(read(with_chunk(chunk(name, b"") * 9_000)), PIXELS)
