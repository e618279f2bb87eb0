"""Which way up a picture is, from metadata that may be broken: whatever cannot be read is ignored."""

import re
import struct
from collections.abc import Mapping
from typing import Final

from PIL import Image

TURNS: Final[Mapping[int, Image.Transpose]] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TAG: Final = 0x112
INTEGERS: Final = {1: "B", 3: "H", 4: "I"}  # the types of EXIF in which writers store the orientation
XMP: Final = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


def upright(picture: Image.Image, metadata: bytes) -> Image.Image:
    """The picture turned as its EXIF says, or its XMP if it has no EXIF that says so."""
    turn = TURNS.get(_of_exif(metadata) or _of_xmp(metadata) or 1)
    return picture if turn is None else picture.transpose(turn)


def metadata_of(picture: Image.Image) -> bytes:
    """EXIF and XMP of a JPEG or WebP that the imaging library has opened."""
    blocks = (picture.info.get(name) for name in ("exif", "xmp"))
    return b"".join(block for block in blocks if isinstance(block, bytes))


def _of_exif(block: bytes) -> int | None:
    """*Source*: Exif 2.32, 4.6.2: a TIFF header, then the entries of the first directory, 12 bytes each."""
    tiff = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        [start] = struct.unpack_from(f"{order}I", tiff, 4)
        [count] = struct.unpack_from(f"{order}H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, at)
            if tag == TAG and kind in INTEGERS:
                return int(struct.unpack_from(order + INTEGERS[kind], tiff, at + 8)[0])
    except struct.error:  # it ends too early
        pass
    return None


def _of_xmp(block: bytes) -> int | None:
    found = XMP.search(block)
    return int(found[1]) if found else None
