"""Pictures as they travel: written for an encode, checked when they come back."""

import io
import struct
import zlib
from contextlib import suppress
from os import PathLike
from typing import Any, Final, TypeAlias

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from remote_vae.client.latents import copy_of
from remote_vae.errors import InvalidReply, InvalidValue
from remote_vae.values import Buffer, Format

# A PIL image, a written picture or video, its path, a tensor, or a function that returns one of them.
AnyPicture: TypeAlias = Any

PNG_MODES: Final = ("1", "L", "LA", "I;16", "I;16B", "P", "RGB", "RGBA")
NEAREST_MODE: Final = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}  # otherwise RGB
LEVELS, DEEP = 255, 65535  # the largest value in 8 and in 16 bits
READ_BY_SERVERS: Final = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")  # PNG, JPEG and WebP
BROKEN: Final = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def held(image: AnyPicture) -> AnyPicture:
    """The same picture, copied, so that the caller cannot change it; a function or path is left as it is."""
    if callable(image) or isinstance(image, (str, PathLike)):
        return image
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, Image.Image):
        with suppress(*BROKEN):  # what cannot be read becomes the item's error later on
            return image.copy()
        return image
    return copy_of(image)


def write_png(image: Image.Image) -> bytes:
    """A picture of any mode as PNG; a mode that PNG does not have becomes the nearest one, mostly RGB.

    Its EXIF and XMP go with it, by which the server turns it, as it does a file's. Integers up to 255 and floats up to
    1 or 255 are levels of grey, and larger integers are levels of 16 bits. *Raises* InvalidValue for other values.
    """
    buffer, about = io.BytesIO(), PngInfo()
    if image.info.get("xmp"):
        about.add_itxt("XML:com.adobe.xmp", image.info["xmp"])
    how: dict[str, Any] = {"exif": image.info.get("exif") or None, "pnginfo": about}
    if image.mode not in PNG_MODES:
        # The colour profile belongs to the mode that is left.
        how["icc_profile"] = None
        image = _grey(image) if image.mode in ("I", "F") else image.convert(NEAREST_MODE.get(image.mode, "RGB"))
    image.save(buffer, format="PNG", compress_level=1, **how)
    return buffer.getvalue()


def _grey(image: Image.Image) -> Image.Image:
    """A picture of numbers that have no largest one; *raises* InvalidValue if it cannot be told which that is."""
    values = np.asarray(image)
    least, most = values.min(), values.max()
    if not (least >= 0 and most <= (DEEP if image.mode == "I" else LEVELS)):  # also false for NaN
        raise InvalidValue(
            f"a picture of mode {image.mode!r} has values from {least:g} to {most:g}; expected 0 to 255, or "
            f"{'0 to 65535' if image.mode == 'I' else '0 to 1'}; scale it, or convert it to mode L"
        )
    if image.mode == "F":
        return Image.fromarray((values * (LEVELS if most <= 1 else 1) + 0.5).astype(np.uint8))
    return Image.fromarray(values.astype(np.uint8 if most <= LEVELS else np.uint16))


def readable(data: Buffer) -> Buffer:
    """The bytes of a picture as the server reads them: GIF, BMP, TIFF and what else Pillow reads become PNG.

    A GIF of several frames is a video, and stays as it is; so does what Pillow does not read.
    """
    if bytes(memoryview(data)[:4]).startswith(READ_BY_SERVERS):
        return data
    try:
        image = Image.open(io.BytesIO(data))
        if image.format == "GIF" and getattr(image, "is_animated", False):
            return data
        image.load()
    except BROKEN:
        return data
    return write_png(image)


def read_picture(data: bytes, asked: Format, *, most_pixels: int) -> Image.Image:
    """The picture, loaded, in RGB, or in RGBA if it has transparency.

    Its pixels are read only if its header names at most `most_pixels`.
    *Raises* InvalidReply for anything but a whole picture in the format that was asked for.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=[asked.pillow])
        if image.width * image.height > most_pixels:
            raise InvalidReply(
                f"the reply is {image.width}x{image.height} pixels, too many for the latent that was sent",
                height=image.height,
                width=image.width,
            )
        image.load()
    except BROKEN as exc:
        raise InvalidReply(f"the reply is not a whole {asked.pillow} picture: {exc}") from exc
    converted = image.convert("RGBA" if image.has_transparency_data else "RGB")
    converted.format = image.format
    return converted
