"""Pictures come in as anybody writes them, and go out as anybody reads them."""

import contextlib
import random
import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from remote_vae.errors import InvalidImage, TooLarge, UnsupportedMediaType, UnsupportedOutput
from remote_vae.media.images import read_image, write_image
from remote_vae.media.png import write_png
from remote_vae.values import FORMATS

REFUSALS = (InvalidImage, TooLarge, UnsupportedMediaType)


def picture(width: int = 48, height: int = 32) -> np.ndarray:
    """Smooth colour, the same on every run."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 5, y * 7, 255 - x * 3 - y], axis=-1).astype(np.uint8)


def written(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def read(
    data: bytes, channels: int = 3, *, multiple: int = 8, max_pixels: int = 10**6, max_side: int = 4096
) -> np.ndarray:
    return read_image(data, channels, multiple=multiple, max_pixels=max_pixels, max_side=max_side).pixels


def transparent(width: int = 48, height: int = 32) -> np.ndarray:
    """Smooth colour that fades from left to right, from clear to opaque."""
    alpha = np.linspace(0, 255, width).round().astype(np.uint8)
    return np.dstack([picture(width, height), np.broadcast_to(alpha, (height, width))])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_png(mode: str) -> None:
    """A PNG of any mode is read as the imaging library makes RGB of it."""
    image = Image.fromarray(picture()).convert(mode)
    assert np.array_equal(read(written(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_transparency_for_a_model_that_has_it(kind: str, mode: str) -> None:
    """With four channels transparency is kept, and a picture without transparency is opaque."""
    image = Image.fromarray(transparent()).convert(mode)
    data = written(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    found = read(data, 4)
    assert np.array_equal(found, np.asarray(Image.open(BytesIO(data)).convert("RGBA")))
    assert (found[..., 3].min() == 255) == (mode in ("L", "RGB"))


def test_a_transparent_colour_of_a_palette() -> None:
    """A PNG whose palette has a transparent colour is transparent there."""
    image = Image.fromarray(picture()).convert("P")
    image.putpixel((3, 5), 7)
    found = read(written(image, "PNG", transparency=7), 4)
    assert found[5, 3, 3] == 0
    assert found[..., 3].max() == 255


def test_a_jpeg_is_opaque() -> None:
    data = written(Image.fromarray(picture()), "JPEG")
    assert np.array_equal(read(data, 4)[..., :3], read(data))
    assert read(data, 4)[..., 3].min() == 255


def test_sixteen_bits_keep_their_upper_byte() -> None:
    """A 16-bit picture is scaled to 8 bits; clipping would turn nearly all of it white."""
    deep = (np.arange(32 * 32, dtype=np.uint16) * 64).reshape(32, 32)
    got = read(written(Image.fromarray(deep)))
    assert np.array_equal(got, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=-1))


def test_sixteen_bit_colour() -> None:
    """A PNG of 16 bits a channel, which the imaging library cannot write, is read too."""
    deep = np.repeat(picture(8, 8).astype(">u2") * 257, 1, axis=0)
    lines = b"".join(b"\0" + line.tobytes() for line in deep)
    chunks = [(b"IHDR", struct.pack(">2I5B", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    assert np.array_equal(read(b"\x89PNG\r\n\x1a\n" + body), picture(8, 8))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_mode_of_jpeg(mode: str) -> None:
    data = written(Image.fromarray(picture()).convert(mode), "JPEG", quality=95)
    assert np.array_equal(read(data), np.asarray(Image.open(BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_every_mode_of_webp(mode: str) -> None:
    data = written(Image.fromarray(picture()).convert(mode), "WEBP", lossless=True)
    assert np.array_equal(read(data), picture())


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.fromarray(picture()), Image.new("RGB", (48, 32))]
    data = written(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(read(data), picture())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation: int) -> None:
    """A photograph that a phone took sideways is encoded upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = written(Image.fromarray(picture()), "PNG", exif=exif)
    turned = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda p: np.rot90(p, 1),
    }[orientation]
    assert np.array_equal(read(data), turned(picture()))


@pytest.mark.parametrize("made", [picture, transparent])
@pytest.mark.parametrize(("size", "multiple"), [((50, 37), 8), ((47, 32), 16), ((48, 33), 16)])
def test_odd_sizes_as_the_pipelines_take_them(
    size: tuple[int, int], multiple: int, made: Callable[..., np.ndarray]
) -> None:
    """A size that is no multiple is resized to the next lower one, pixel for pixel as diffusers does it."""
    image = Image.fromarray(made(*size))
    expected = VaeImageProcessor(vae_scale_factor=multiple).preprocess(image)
    got = (
        torch.tensor(read(written(image), len(image.mode), multiple=multiple)).permute(2, 0, 1)[None].float() / 255 * 2
        - 1
    )
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_a_picture_below_one_latent_is_refused() -> None:
    with pytest.raises(InvalidImage, match="7x40 pixels; it needs at least 8x8"):
        read(written(Image.fromarray(picture(7, 40))))


@pytest.mark.parametrize("data", [b"", b"x", b"GIF89a" + bytes(99), b"RIFF\0\0\0\0WAVE" + bytes(99), b"%PDF-1.7" * 9])
def test_other_formats_are_refused_unopened(data: bytes) -> None:
    with pytest.raises(UnsupportedMediaType, match="expected PNG, JPEG or WebP"):
        read(data)


def test_a_bomb_is_refused_from_its_header() -> None:
    """A hundred megapixels in a few bytes never reach the decompressor: there is nothing behind the header."""
    header = b"IHDR" + struct.pack(">2I5B", 10_000, 10_000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    with pytest.raises(TooLarge, match="10000x10000") as caught:
        read(data, max_pixels=4096 * 4096, max_side=20_000)
    assert caught.value.status == 413


def test_a_side_over_the_limit_is_refused() -> None:
    with pytest.raises(TooLarge, match="64 a side"):
        read(written(Image.fromarray(picture(72, 8))), max_side=64)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_cut_anywhere_is_refused_or_whole(kind: str) -> None:
    """However many bytes of its end are missing, nothing but one of our errors is raised."""
    data = written(Image.fromarray(picture()), kind)
    refused = 0
    for length in range(0, len(data) - 1, 7):
        try:
            assert read(data[:length]).shape == (32, 48, 3)
        except REFUSALS:
            refused += 1
    assert refused > 5
    with pytest.raises(InvalidImage, match="cut short"):
        read(data[: len(data) // 2])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["PNG", "JPEG", "WEBP"]), flips=st.integers(1, 12))
def test_flipped_bytes_are_refused_or_read(seed: int, kind: str, flips: int) -> None:
    """A picture with broken bytes is pixels or one of our errors, never another exception."""
    rng = random.Random(seed)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(written(Image.fromarray(picture()), kind, exif=exif))
    for _ in range(flips):
        data[rng.randrange(len(data))] = rng.randrange(256)
    with contextlib.suppress(*REFUSALS):
        assert read(bytes(data)).shape[2] == 3


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (7, 1, 3), (33, 50, 3), (1, 1, 4), (7, 1, 4), (33, 50, 4)])
def test_our_png_is_a_png(shape: tuple[int, int, int]) -> None:
    """What we write, the imaging library reads back exactly, for any size and any values."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    image = Image.open(BytesIO(write_png(pixels)))
    image.verify()
    assert np.array_equal(np.asarray(Image.open(BytesIO(write_png(pixels)))), pixels)


@pytest.mark.parametrize("image_format", ["jpg", "png", "webp", "avif"])
def test_written_pictures_look_the_same(image_format: str) -> None:
    data = write_image(picture(), FORMATS[image_format], quality=95)
    back = np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(float)
    assert np.abs(back - picture()).mean() < (0.01 if image_format == "png" else 4)


@pytest.mark.parametrize("image_format", ["png", "webp", "avif"])
def test_written_pictures_are_as_transparent(image_format: str) -> None:
    """Every format that can hold it keeps transparency, and the colours where they can be seen."""
    data = write_image(transparent(), FORMATS[image_format], quality=95)
    back = Image.open(BytesIO(data))
    assert back.mode == "RGBA"
    difference = np.abs(np.asarray(back).astype(float) - transparent())
    assert difference[..., 3].mean() < (0.01 if image_format == "png" else 2)
    assert difference[:, 24:].mean() < (0.01 if image_format == "png" else 4)


@pytest.mark.parametrize("image_format", ["jpg", "webp", "avif"])
def test_quality_is_heard(image_format: str) -> None:
    small, large = (len(write_image(picture(200, 200), FORMATS[image_format], quality=q)) for q in (20, 95))
    assert small < large


def test_a_format_that_cannot_hold_the_side_says_so() -> None:
    pixels = np.zeros((1, 16384, 3), np.uint8)
    with pytest.raises(UnsupportedOutput, match="webp holds at most 16383"):
        write_image(pixels, FORMATS["webp"], quality=80)
    assert write_image(pixels, FORMATS["png"], quality=80)


def test_a_format_that_the_imaging_library_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of the imaging library without a format is told to the client, with what to do."""
    monkeypatch.delitem(Image.SAVE, "AVIF")
    with pytest.raises(UnsupportedOutput, match="cannot write AVIF; ask for another image_format"):
        write_image(picture(), FORMATS["avif"], quality=80)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (written(Image.fromarray(picture()), "GIF"), "a GIF file"),
        (written(Image.fromarray(picture()), "BMP"), "a BMP file"),
        (written(Image.fromarray(picture()), "TIFF"), "a TIFF file"),
        (written(Image.fromarray(picture()), "AVIF"), "an AVIF file"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "a HEIC file"),
        (b"\0\0\0\x18ftypisom" + bytes(99), "an MP4 file"),
    ],
)
def test_a_refusal_names_the_format(data: bytes, named: str) -> None:
    """It says what came, what is read, and that this project's client sends other formats as PNG."""
    with pytest.raises(UnsupportedMediaType, match=f"the body is {named}; expected PNG, JPEG or WebP.* as PNG"):
        read(data)
