"""Colours and transparency are not lost without a word."""

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageCms

from remote_vae.media.images import ReadPicture, read_image
from remote_vae.values import RGB, RGBA

VIVID = Image.new("RGB", (16, 8), (200, 60, 40))
KINDS = ("PNG", "JPEG", "WEBP")
# Colours of the display P3 as ICC profiles have them, adapted to D50. Source: ICC.1:2022 and SMPTE RP 431-2.
P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def profile(space: bytes = b"RGB ", name: bytes = b"Vivid") -> bytes:
    """A profile of version 2 with a gamma of 2.2: three colours of P3, or one of grey."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, 563)
    described = b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name + bytes(79)
    tags = {b"desc": described, b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)}
    if space == b"RGB ":
        tags |= {
            letter + b"XYZ": b"XYZ " + bytes(4) + fixed(*xyz)
            for letter, xyz in zip((b"r", b"g", b"b"), P3, strict=True)
        }
        tags |= {letter + b"TRC": curve for letter in (b"r", b"g", b"b")}
    else:
        tags[b"kTRC"] = curve
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for tag, body in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(data), b"lcms", 0x0240_0000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def read(
    picture: Image.Image, kind: str = "PNG", channels: int = RGB, *, use_profile: bool = True, **how: object
) -> ReadPicture:
    out = BytesIO()
    picture.save(out, kind, **how)
    return read_image(out.getvalue(), channels, multiple=8, max_pixels=10**6, max_side=4096, use_profile=use_profile)


@pytest.mark.parametrize("kind", KINDS)
def test_a_profile_is_converted_to_srgb(kind: str) -> None:
    """The pixels are those of the picture as it looks, and the note names the profile and the way to leave it out."""
    how = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}[kind]
    found = read(VIVID, kind, icc_profile=profile(), **how)
    seen = ImageCms.profileToProfile(
        VIVID, ImageCms.ImageCmsProfile(BytesIO(profile())), ImageCms.createProfile("sRGB")
    )
    assert found.pixels[0, 0].tolist() == pytest.approx(seen.getpixel((0, 0)), abs=3)
    assert np.abs(found.pixels[0, 0].astype(int) - VIVID.getpixel((0, 0))).max() > 10
    assert "converted from the picture's profile, Vivid, to sRGB; profile=ignore leaves them" in found.note
    stored = read(VIVID, kind, icc_profile=profile(), use_profile=False, **how)
    assert stored.pixels[0, 0].tolist() == pytest.approx(VIVID.getpixel((0, 0)), abs=3)
    assert stored.note == ""


def test_grey_with_a_profile() -> None:
    """The profile of a grey picture is applied to grey."""
    found = read(Image.new("L", (16, 8), 100), icc_profile=profile(b"GRAY", b"Grey"))
    assert "profile, Grey, to sRGB" in found.note
    assert len(set(found.pixels[0, 0].tolist())) == 1


def test_srgb_is_left_alone() -> None:
    """A picture that says it is sRGB keeps its numbers, and there is nothing to note."""
    found = read(VIVID, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert (found.pixels[0, 0].tolist(), found.note) == ([200, 60, 40], "")


@pytest.mark.parametrize(
    "broken", [b"x", bytes(200), profile()[:140], profile()[:-300], profile(b"GRAY"), profile(b"CMYK")]
)
def test_a_profile_that_does_not_do_is_ignored(broken: bytes) -> None:
    """The numbers are kept, and the note says so."""
    found = read(VIVID, icc_profile=broken)
    assert (found.pixels[0, 0].tolist(), "ignored" in found.note) == ([200, 60, 40], True)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_that_is_dropped_is_noted(kind: str) -> None:
    """A model without transparency gets the colours beneath, with a note if anything was transparent."""
    how = {} if kind == "PNG" else {"lossless": True, "exact": True}
    for alpha, noted in ((255, False), (254, True), (0, True)):
        found = read(Image.new("RGBA", (16, 8), (200, 60, 40, alpha)), kind, **how)
        assert (found.pixels[0, 0].tolist(), "transparency was dropped" in found.note) == ([200, 60, 40], noted)


def test_transparency_of_a_palette() -> None:
    picture = Image.new("P", (16, 8), 0)
    picture.putpalette([200, 60, 40])
    assert "transparency was dropped" in read(picture, transparency=0).note


def test_transparency_outlasts_a_profile() -> None:
    """A model with transparency gets it, whatever is done with the colours."""
    found = read(Image.new("RGBA", (16, 8), (200, 60, 40, 77)), channels=RGBA, icc_profile=profile())
    assert (found.pixels[0, 0, 3], "transparency" in found.note) == (77, False)
    assert "profile, Vivid" in found.note


def test_a_name_that_no_header_holds() -> None:
    """A profile's name is cut and cleaned, because the note travels in a header."""
    note = read(VIVID, icc_profile=profile(name=b"D\xe9\r\nx-evil: 1" + b"z" * 500)).note
    assert note.isascii()
    assert note.isprintable()
    assert len(note) < 200
