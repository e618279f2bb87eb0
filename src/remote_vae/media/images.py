"""uint8 pixels <-> PNG, JPEG and WebP."""

import warnings
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from remote_vae.errors import InvalidImage, TooLarge, UnsupportedMediaType

Buffer = bytes | bytearray | memoryview
MAGIC: Final = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "WEBP": b"RIFF"}


def read_image(data: Buffer, *, multiple: int, max_pixels: int, max_side: int) -> NDArray[np.uint8]:
    """*Shapes*: [H,W,3]."""
    head = bytes(memoryview(data)[:16])
    kind = next((name for name, magic in MAGIC.items() if head.startswith(magic)), None)
    if kind is None or (kind == "WEBP" and head[8:12] != b"WEBP"):
        raise UnsupportedMediaType("the body is not a picture; expected PNG, JPEG or WebP")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture: Image.Image = Image.open(BytesIO(data), formats=[kind])
            width, height = picture.size
            if width * height > max_pixels or max(width, height) > max_side:
                raise TooLarge(
                    f"the picture is {width}x{height} pixels; the limit is {max_pixels} and {max_side} a side"
                )
            picture.load()
            picture = ImageOps.exif_transpose(picture)
    except Image.DecompressionBombError as exc:
        raise TooLarge("the picture is too large") from exc
    except (OSError, SyntaxError, ValueError, EOFError) as exc:
        raise InvalidImage("the picture is broken or cut short") from exc
    rgb = picture.convert("RGB")
    w, h = rgb.width - rgb.width % multiple, rgb.height - rgb.height % multiple
    if min(w, h) < 1:
        raise InvalidImage(f"the picture is {rgb.width}x{rgb.height} pixels; it needs at least {multiple}x{multiple}")
    if (w, h) != rgb.size:
        rgb = rgb.resize((w, h), Image.Resampling.LANCZOS)
    return np.ascontiguousarray(rgb)


def write_image(pixels: NDArray[np.uint8], *, image_format: str, quality: int) -> bytes:
    """*Shapes*: [H,W,3]."""
    out = BytesIO()
    picture = Image.fromarray(pixels)
    if image_format == "png":
        picture.save(out, "PNG", compress_level=1)
    elif image_format == "jpg":
        picture.save(out, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2)
    else:
        picture.save(out, "WEBP", quality=quality)
    return out.getvalue()
