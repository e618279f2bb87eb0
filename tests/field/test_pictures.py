"""Pictures as people have them: content types, metadata, orientation, integer and float modes, other formats."""

import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image, PngImagePlugin

from remote_vae import Client
from remote_vae.client.latents import tensor_of
from remote_vae.client.pictures import readable, write_png
from remote_vae.errors import InvalidValue
from remote_vae.media.images import read_image

Y, X = np.mgrid[:24, :32]
PIXELS = np.stack([X * 7, Y * 9, 255 - X * 3 - Y], -1).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)
RAMP = np.tile(np.arange(32), (24, 1))


def written(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def read(data: bytes) -> np.ndarray:
    return read_image(data, multiple=1, max_pixels=2**20, max_side=2**12).pixels


def sent(image: Image.Image) -> np.ndarray:
    """The pixels that the server reads of a picture object."""
    return read(write_png(image))


def encode(copy: Any, data: bytes, content_type: str | None) -> requests.Response:
    headers = {"content-type": content_type} if content_type is not None else {}
    return requests.post(f"{copy.url}/copy/encode", data=data, headers=headers, timeout=30)


TYPES = ["image/jpg", "image/pjpeg", "image/x-png", "image/png", "image/apng", "image/*", "binary/octet-stream", None]


@pytest.mark.parametrize("content_type", [*TYPES, "application/octet-stream", "IMAGE/PNG; q=1"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_content_types_are_judged_by_the_body(copy: Any, content_type: str | None, kind: str) -> None:
    """Old, wrong and missing names of a picture's type change nothing: its first bytes say what it is."""
    reply = encode(copy, written(PICTURE, kind), content_type)
    assert reply.status_code == 200, reply.text
    assert reply.headers["shape"] == "[1, 3, 24, 32]"


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_curls_own_content_type(copy: Any, content_type: str) -> None:
    """What curl sends without a header gets the flags to give."""
    reply = encode(copy, written(PICTURE), content_type)
    assert reply.status_code == 415
    assert "curl" in reply.json()["error"]
    assert "--data-binary @FILE -H 'content-type: application/octet-stream'" in reply.json()["error"]
    assert reply.json()["request_id"]


@pytest.mark.parametrize(("kind", "named"), [("GIF", "GIF"), ("BMP", "BMP"), ("TIFF", "TIFF"), ("AVIF", "AVIF")])
def test_other_formats(copy: Any, kind: str, named: str) -> None:
    """The client sends as PNG what Pillow reads; the server alone names the format and what to do."""
    data = written(PICTURE, kind)
    reply = encode(copy, data, f"image/{kind.lower()}")
    assert reply.status_code == 415
    assert f"{named} file" in reply.json()["error"]
    with Client(copy.url) as client:
        assert client.encode(data).shape == (1, 3, 24, 32)


def orientation(value: int) -> bytes:
    found = Image.Exif()
    found[0x112] = value
    return found.tobytes()


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", [1, 3, 6, 8])
def test_orientation_from_bytes_files_and_objects(tmp_path: Path, kind: str, value: int) -> None:
    """One photograph gives one set of pixels, however it is handed over."""
    exif = Image.Exif()
    exif[0x112] = value
    data = written(PICTURE, kind, exif=exif)
    (tmp_path / "photo").write_bytes(data)
    with Image.open(tmp_path / "photo") as opened:
        by_object = sent(opened)
    assert np.array_equal(read(bytes(readable(data))), by_object)
    assert by_object.shape[:2] == ((32, 24) if value in (6, 8) else (24, 32))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_orientation_in_xmp_alone(kind: str) -> None:
    """Editors write the orientation into XMP; the opened picture is turned as its bytes are."""
    data = written(PICTURE, kind, xmp=XMP)
    assert read(data).shape[:2] == (32, 24)
    assert np.array_equal(sent(Image.open(io.BytesIO(data))), read(data))


def test_a_picture_that_was_turned_already() -> None:
    """A picture that its user has turned with ImageOps is not turned again."""
    from PIL import ImageOps

    opened = Image.open(io.BytesIO(written(PICTURE, "JPEG", exif=orientation(6), quality=100)))
    assert sent(ImageOps.exif_transpose(opened)).shape[:2] == (32, 24)


DEEP = {
    "I;16": Image.fromarray((RAMP * 257).astype(np.uint16)),
    "I": Image.fromarray((RAMP * 257 * 8).astype(np.int32)),
    "I of 8 bits": Image.fromarray((RAMP * 8).astype(np.int32)),
    "F": Image.fromarray((RAMP / 31).astype(np.float32)),
    "F of 255": Image.fromarray((RAMP * 8).astype(np.float32)),
    "1": Image.fromarray(RAMP > 15),
}


@pytest.mark.parametrize("mode", DEEP)
def test_integers_and_floats_are_levels(mode: str) -> None:
    """Neither white nor black: the levels of every mode rise from dark to as light as they are."""
    found = sent(DEEP[mode])[0, :, 0].astype(int)
    most = {"I;16": 31, "I": 248, "I of 8 bits": 248, "F": 255, "F of 255": 248, "1": 255}[mode]
    assert found[0] == 0
    assert found[-1] == most
    assert (np.diff(found) >= 0).all()
    assert mode == "1" or len(set(found.tolist())) == 32


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((RAMP - 5).astype(np.int32), "from -5 to 26; expected 0 to 255, or 0 to 65535"),
        ((RAMP * 10_000).astype(np.int32), "from 0 to 310000; expected"),
        ((RAMP / 16 - 1).astype(np.float32), "from -1 to 0.9375; expected 0 to 255, or 0 to 1"),
        ((RAMP * 2000.0).astype(np.float32), "from 0 to 62000; expected"),
        (np.full((4, 4), np.nan, np.float32), "from nan to nan; expected"),
    ],
)
def test_numbers_of_an_unknown_scale_are_refused(values: np.ndarray, words: str) -> None:
    """Heights, depths and normalised floats say what they have and what is expected, and are not clipped."""
    with pytest.raises(InvalidValue, match=words):
        write_png(Image.fromarray(values))


@pytest.mark.parametrize(
    ("dtype", "words"),
    [("uint16", "divided by 65535"), ("bool", "0 and 1"), ("int64", "uint8"), ("float64", "float32")],
)
def test_arrays_of_other_types_are_refused(dtype: str, words: str) -> None:
    """An array whose scale or precision is not known names the type that does travel."""
    with pytest.raises(InvalidValue, match=f"dtype '{dtype}' is not one that travels here; .*{words}"):
        tensor_of(np.ones((1, 3, 8, 8), dtype))


def test_sixteen_bits_that_are_eight(copy: Any) -> None:
    """A file of 16 bits with the values of 8, which is black in 8 bits, is encoded with a word about it."""
    reply = encode(copy, written(Image.fromarray((RAMP * 8).astype(np.uint16))), None)
    assert reply.status_code == 200
    assert "16 bits and no value above 255" in reply.headers["x-note"]
    assert "x-note" not in encode(copy, written(DEEP["I;16"]), None).headers


def with_chunk(name: bytes, body: bytes) -> bytes:
    data = written(PICTURE)
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data[:33] + chunk + data[33:]


def text(*keys: str) -> PngImagePlugin.PngInfo:
    found = PngImagePlugin.PngInfo()
    for key in keys:
        found.add_text(key, "masterpiece, best quality\n" * 40_000, zip=True)
    return found


ODD = {
    "a generator's parameters": lambda: written(PICTURE, pnginfo=text("parameters", "workflow", "prompt")),
    "gAMA of nothing": lambda: with_chunk(b"gAMA", bytes(4)),
    "cHRM cut short": lambda: with_chunk(b"cHRM", b"\0"),
    "sBIT of another size": lambda: with_chunk(b"sBIT", bytes(9)),
    "pHYs of nothing": lambda: with_chunk(b"pHYs", b""),
    "tIME of month 99": lambda: with_chunk(b"tIME", bytes((7, 200, 99, 99, 99, 99, 99))),
    "caBX of provenance": lambda: with_chunk(b"caBX", bytes(300_000)),
    "eXIf of nothing": lambda: with_chunk(b"eXIf", b""),
    "eXIf that points everywhere": lambda: with_chunk(b"eXIf", b"II*\0\xff\xff\xff\xff" + b"\xff" * 64),
    "iCCP that is none": lambda: with_chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile")),
    "a comment of 64 kB": lambda: written(PICTURE, "JPEG", comment=b"x" * 65_000),
    "DPI of zero": lambda: written(PICTURE, "JPEG", dpi=(0, 0)),
    "an EXIF thumbnail": lambda: written(PICTURE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(60_000)),
    "XMP of 60 kB": lambda: written(PICTURE, "JPEG", xmp=b"<x>" + b"y" * 60_000),
    "a progressive JPEG": lambda: written(PICTURE, "JPEG", progressive=True),
    "bytes after the end": lambda: written(PICTURE, "JPEG") + bytes(1000),
    "bytes after a PNG's end": lambda: written(PICTURE) + b"PK\3\4" + bytes(1000),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ODD)
def test_metadata_is_not_pixels(kind: str) -> None:
    """However odd what stands beside the pixels, they are read, at no cost that a small picture does not have."""
    began = time.monotonic()
    found = read(ODD[kind]())
    assert found.shape == (24, 32, 3)
    assert np.abs(found.astype(int) - PIXELS).mean() < (1 if found.tobytes() == PIXELS.tobytes() else 12)
    assert time.monotonic() - began < 2
