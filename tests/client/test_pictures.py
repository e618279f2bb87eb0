"""Pictures and videos on their way out and back."""

import io

import numpy as np
import pytest
from PIL import Image

from remote_vae.client.pictures import read_picture, readable, write_png
from remote_vae.client.videos import check_video
from remote_vae.errors import InvalidReply
from remote_vae.values import FORMATS, VIDEO_FORMATS

FORMS = {FORMATS[name]: FORMATS[name].pillow for name in ("png", "jpg", "webp")}
MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F"]
MODES += ["I;16", "I;16B", "I;16L"]
BOXES = b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00" + b"\x00\x00\x00\x08moov"


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8))


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "HSV",
        "LAB",
        "I",
        "F",
        "I;16",
        "I;16B",
        "I;16L",
    ],
)
def test_every_mode_is_sent_as_png(mode):
    """A picture of any Pillow mode leaves as a PNG of its size."""
    image = Image.new(mode, (5, 3))
    found = Image.open(io.BytesIO(write_png(image)))
    assert (found.format, found.size) == ("PNG", (5, 3))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_pixels_of_common_modes_are_kept(mode):
    """What PNG can hold is sent without loss."""
    image = noise().convert(mode)
    found = Image.open(io.BytesIO(write_png(image)))
    assert found.mode == mode
    assert found.tobytes() == image.tobytes()


def test_profile_of_a_left_mode_is_not_sent():
    """A CMYK picture's colour profile does not go along with its RGB pixels."""
    image = Image.new("CMYK", (2, 2))
    image.info["icc_profile"] = b"cmyk"
    assert "icc_profile" not in Image.open(io.BytesIO(write_png(image))).info


@pytest.mark.parametrize("form", list(FORMS))
def test_cut_picture_is_never_a_wrong_one(form):
    """Cut anywhere, a written picture is an InvalidReply, or still has every pixel."""
    buffer = io.BytesIO()
    noise().save(buffer, format=FORMS[form])
    data = buffer.getvalue()
    whole = read_picture(data, form, most_pixels=2**24)
    assert whole.format == FORMS[form]
    for end in [*range(0, len(data) - 64, 37), *range(len(data) - 64, len(data))]:
        try:
            found = read_picture(data[:end], form, most_pixels=2**24)
        except InvalidReply:
            continue
        assert found.tobytes() == whole.tobytes()


def test_size_is_judged_before_the_pixels():
    """A picture with more pixels than its latent can give is refused by its header, before its pixels are read."""
    header = write_png(noise())[:60]
    with pytest.raises(InvalidReply, match="32x24 pixels, too many"):
        read_picture(header, FORMATS["png"], most_pixels=32 * 24 - 1)


def test_picture_comes_in_rgb():
    """A grey picture is handed over in RGB and remembers its format."""
    found = read_picture(write_png(Image.new("L", (2, 2))), FORMATS["png"], most_pixels=2**24)
    assert (found.mode, found.format) == ("RGB", "PNG")


@pytest.mark.parametrize(("sent", "mode"), [("RGBA", "RGBA"), ("LA", "RGBA"), ("RGB", "RGB"), ("P", "RGB")])
def test_transparency_is_kept(sent, mode):
    """A picture comes in RGBA if it has transparency."""
    found = read_picture(write_png(noise().convert(sent)), FORMATS["png"], most_pixels=2**24)
    assert found.mode == mode


@pytest.mark.parametrize(
    "data",
    [
        BOXES + b"\x00\x00\x00\x0cmdat1234",
        BOXES + b"\x00\x00\x00\x00mdat1234",
        BOXES + b"\x00\x00\x00\x01mdat" + (20).to_bytes(8, "big") + b"1234",
    ],
)
def test_whole_mp4(data):
    """Boxes of every spelling of their size that fill the file are a whole MP4."""
    check_video(data, VIDEO_FORMATS["mp4"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        BOXES[:16],
        BOXES[16:],
        BOXES + b"\x00\x00\x00\x0cmdat123",
        BOXES + b"\x00\x00\x00\x00",
        BOXES + b"\x00" * 7,
    ],
)
def test_cut_mp4(data):
    """A file that ends within a box, or lacks its first or its index, is an InvalidReply."""
    with pytest.raises(InvalidReply):
        check_video(data, VIDEO_FORMATS["mp4"])


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF", "TGA", "PPM"])
def test_what_pillow_reads_is_sent_as_png(kind: str) -> None:
    """Formats that the server does not read become PNG; the server's own are sent as they are."""
    picture, out = noise().convert("P" if kind == "GIF" else "RGB"), io.BytesIO()
    picture.save(out, kind)
    sent = Image.open(io.BytesIO(readable(out.getvalue())))
    assert sent.format == "PNG"
    assert sent.convert("RGB").tobytes() == Image.open(io.BytesIO(out.getvalue())).convert("RGB").tobytes()


@pytest.mark.parametrize("data", [b"", b"x", b"GIF89a", b"\0\0\0\x18ftypheic" + bytes(200)])
def test_what_nobody_reads_is_left_to_the_server(data: bytes) -> None:
    assert readable(memoryview(data)) == data


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_servers_own_formats_are_sent_as_they_are(kind: str) -> None:
    out = io.BytesIO()
    noise().save(out, kind)
    data = out.getvalue()
    assert readable(data) is data
