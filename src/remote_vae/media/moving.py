"""Pictures that move without a codec of video: animated GIF and WebP, and pictures in a ZIP."""

import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from itertools import count
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from remote_vae.errors import InvalidImage, TooLarge, UnsupportedMediaType
from remote_vae.media.images import check_size, converted, read_image
from remote_vae.media.webp import canvas, check_chunks
from remote_vae.values import Buffer, clip

UNSAID: Final = Fraction(1, 10)  # s; browsers show a frame that says less than `LEAST` for as long
LEAST: Final = Fraction(1, 50)
UNENDED: Final = "the GIF has no end, so it may be cut short"
MOST_BYTES_OF_A_PIXEL: Final = 10  # of a picture's file, as for a body that is a picture
STORED: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DIGITS: Final = re.compile(r"(\d{1,18})")
ENTRY: Final = b"PK\1\2"  # of the list of what is in a ZIP
MOST_ENTRIES: Final = 10_000  # the library makes an object of each


@dataclass(frozen=True, slots=True)
class Limits:
    """How frames are read: `read_image` has the same words."""

    channels: int
    multiple: int
    max_pixels: int
    max_side: int
    use_profile: bool

    def check(self, width: int, height: int) -> None:
        check_size((width, height), max_pixels=self.max_pixels, max_side=self.max_side)


@dataclass(frozen=True, slots=True)
class Frame:
    """uint8 pixels [H,W,C], when they are shown, and what was lost of them. *Units*: seconds from the beginning."""

    pixels: NDArray[np.uint8]
    begins: Fraction
    ends: Fraction
    note: str = ""


def frames_of_animation(data: Buffer, kind: str, limits: Limits) -> Iterator[Frame]:
    """The frames of a GIF or WebP, each as it is seen."""
    if kind == "WEBP":
        check_chunks(data)
        limits.check(*canvas(data))
    with _bounded(limits):
        picture: Image.Image = Image.open(BytesIO(data), formats=[kind])
    cut = kind == "GIF" and not bytes(memoryview(data)[-16:]).rstrip(b"\0").endswith(b";")
    profile = picture.info.get("icc_profile") or b"" if limits.use_profile else b""
    begins = Fraction(0)
    for number in count():
        try:
            with _bounded(limits):
                picture.seek(number)
        except EOFError:
            return
        limits.check(*picture.size)  # a frame can make a GIF larger
        told = Fraction(int(picture.info.get("duration") or 0), 1000)
        ends = begins + (told if told >= LEAST else UNSAID)
        found, note = converted(picture, limits.channels, profile)
        if cut:
            note = "; ".join(filter(None, (note, UNENDED)))
        yield Frame(np.asarray(found), begins, ends, note)
        begins = ends


@contextmanager
def _bounded(limits: Limits) -> Iterator[None]:
    """Keeps the imaging library from taking memory for larger frames; no other thread of the process reads pictures."""
    Image.MAX_IMAGE_PIXELS = limits.max_pixels // 2  # it warns of more, and refuses twice as many
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            yield
    except Image.DecompressionBombError as exc:
        raise TooLarge(f"a frame has over {limits.max_pixels} pixels, the limit", limit=limits.max_pixels) from exc
    finally:
        Image.MAX_IMAGE_PIXELS = None


def frames_of_zip(data: Buffer, limits: Limits) -> Iterator[Frame]:
    """The pictures of a ZIP by their names, numbers in names as numbers. They have no times: one is a second."""
    file = bytes(data)
    if file.count(ENTRY) > MOST_ENTRIES:
        text = f"the ZIP file has more than {MOST_ENTRIES} entries; send the pictures that are wanted alone"
        raise InvalidImage(text, limit=MOST_ENTRIES)
    with zipfile.ZipFile(BytesIO(file)) as archive:
        entries = [entry for entry in archive.infolist() if _is_picture(entry)]
        for number, entry in enumerate(sorted(entries, key=lambda entry: _order(entry.filename))):
            name = clip(entry.filename.encode("ascii", "replace").decode())
            _check_entry(entry, name, MOST_BYTES_OF_A_PIXEL * limits.max_pixels)
            try:
                found = read_image(
                    archive.read(entry),
                    limits.channels,
                    multiple=limits.multiple,
                    max_pixels=limits.max_pixels,
                    max_side=limits.max_side,
                    use_profile=limits.use_profile,
                )
            except (InvalidImage, TooLarge, UnsupportedMediaType) as exc:
                raise type(exc)(f"{name!r} in the ZIP file: {exc.message}") from exc
            yield Frame(found.pixels, Fraction(number), Fraction(number + 1), found.note)


def _is_picture(entry: zipfile.ZipInfo) -> bool:
    """Not a folder, and nothing that file managers add."""
    parts = entry.filename.split("/")
    hidden = parts[0] == "__MACOSX" or parts[-1].startswith(".") or parts[-1].lower() in ("thumbs.db", "desktop.ini")
    return not entry.is_dir() and not hidden


def _order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in DIGITS.split(name)]


def _check_entry(entry: zipfile.ZipInfo, name: str, most: int) -> None:
    """*Raises* InvalidImage, TooLarge."""
    if entry.flag_bits & 1:
        raise InvalidImage(f"{name!r} in the ZIP file is encrypted; send the pictures without a password")
    if entry.compress_type not in STORED:
        raise InvalidImage(f"{name!r} in the ZIP file is compressed by another method than deflate; send it stored")
    if entry.file_size > most:
        raise TooLarge(
            f"{name!r} in the ZIP file has {entry.file_size} bytes; the limit for a picture is {most}", limit=most
        )
