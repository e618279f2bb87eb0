"""uint8 pixels <-> PNG, JPEG and WebP."""

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from remote_vae.errors import InvalidImage, RemoteVAEError, TooLarge, UnsupportedMediaType, UnsupportedOutput
from remote_vae.media.colour import to_srgb
from remote_vae.media.jpeg import check_markers
from remote_vae.media.orientation import metadata_of, upright
from remote_vae.media.png import read_parts, write_png
from remote_vae.media.webp import canvas, check_chunks
from remote_vae.values import RGB, RGBA, Buffer, Format

Image.MAX_IMAGE_PIXELS = None  # its limit is fixed and sometimes only a warning; ours is checked before every decode

OPAQUE: Final = 255
LEVELS: Final = 255  # the largest value in 8 bits
BLACK: Final = "the picture has 16 bits and no value above 255, so it is black in the 8 bits that were encoded"
TRANSPARENCY_DROPPED: Final = "transparency was dropped, and the colours beneath it were encoded"
FIRST_FRAME: Final = "the first of {} frames was encoded"
FULL_COLOUR_QUALITY: Final = 90  # from this JPEG quality on, colour is kept at full resolution
AVIF_SPEED: Final = 10  # of 10: a reply should not wait for a somewhat smaller file
WEBP_EFFORT: Final = 2  # of 6: a few percent larger, several times faster than the default
OTHERS: Final = (  # what people also send, by the bytes at a place
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypqt", "MOV"),
    (4, b"ftyp", "MP4"),
    (4, b"moov", "MOV"),
    (4, b"mdat", "MOV"),
    (4, b"wide", "MOV"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska"),  # and WebM
    (0, b"PK\3\4", "ZIP"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
)
AN: Final = ("AVIF", "MP4")
PRINTABLE: Final = string.printable.encode()
BEGINNING: Final = 256  # bytes by which text is told from other bodies: base64, a page of HTML, a pointer of Git LFS
VIDEOS: Final = ("GIF", "MP4", "MOV", "Matroska", "ZIP")


@dataclass(frozen=True, slots=True)
class ReadPicture:
    """uint8 pixels [H,W,C], and what was converted or dropped on the way to them, in a sentence."""

    pixels: NDArray[np.uint8]
    note: str


def read_image(
    data: Buffer, channels: int = RGB, *, multiple: int, max_pixels: int, max_side: int, use_profile: bool = True
) -> ReadPicture:
    """RGB or RGBA pixels, turned as EXIF says, resized to the next lower multiple, as diffusers' pipelines take them.

    *Shapes*: [H,W,channels], both sides multiples of `multiple`. Of an animation the first frame; of 16 bits the upper
    byte. With three channels transparency is dropped; with four a picture without transparency becomes opaque. A
    colour profile is converted to sRGB if `use_profile`. What this loses is in the note.
    *Raises* UnsupportedMediaType for other formats, TooLarge before anything is decompressed, InvalidImage.
    """
    kind = _picture_format(data)
    png = read_parts(memoryview(data).cast("B")) if kind == "PNG" else None
    if kind == "JPEG":
        check_markers(data)
    if kind == "WEBP":
        check_chunks(data)
        check_size(canvas(data), max_pixels=max_pixels, max_side=max_side)
    try:
        picture: Image.Image = Image.open(BytesIO(data if png is None else png.pixels), formats=[kind])
        check_size(picture.size, max_pixels=max_pixels, max_side=max_side)
        if png is not None and png.broken:
            raise ValueError(png.broken)
        turned = upright(picture, metadata_of(picture) if png is None else png.metadata)
        profile = picture.info.get("icc_profile") if png is None else png.profile
        found, note = converted(turned, channels, profile or b"" if use_profile else b"")
    except (RemoteVAEError, MemoryError):
        raise
    except Exception as exc:  # boundary: of a broken picture the imaging library raises anything, assertions among it
        raise InvalidImage(f"the {kind} picture is broken or cut short; send it again whole") from exc
    frames = png.frames if png is not None else getattr(picture, "n_frames", 1) if kind == "WEBP" else 1
    if frames > 1:
        note = "; ".join(filter(None, (note, FIRST_FRAME.format(frames))))
    return ReadPicture(np.ascontiguousarray(lower_multiple(found, multiple)), note)


def lower_multiple(picture: Image.Image, multiple: int) -> Image.Image:
    """The picture, resized if its sides are no multiples; *raises* InvalidImage if they are less than one."""
    width, height = (side - side % multiple for side in picture.size)
    if min(width, height) < 1:
        raise InvalidImage(
            f"the picture is {picture.width}x{picture.height} pixels; it needs at least {multiple}x{multiple}",
            width=picture.width,
            height=picture.height,
        )
    if (width, height) == picture.size:
        return picture
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def format_of(data: Buffer) -> str:
    """By the first bytes, so that no other parser of a library ever sees them; empty if they are of none."""
    head = bytes(memoryview(data)[:12])
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return "WEBP"
    return next((name for start, mark, name in OTHERS if head[start:].startswith(mark)), "")


def _picture_format(data: Buffer) -> str:
    """*Raises* UnsupportedMediaType for what is no PNG, JPEG or WebP."""
    found = format_of(data)
    if found in ("PNG", "JPEG", "WEBP"):
        return found
    what = f"{'an' if found in AN else 'a'} {found} file" if found else "not a picture"
    advice = "; the client and the command line send what Pillow reads as PNG" if found else ""
    if not found and not bytes(memoryview(data).cast("B")[:BEGINNING]).translate(None, PRINTABLE):
        what, advice = "text and not a picture", '; base64 of a picture is read in JSON, {"inputs": "..."}'
    if found in VIDEOS:
        advice = "; a model of videos takes its frames; send one of them as PNG"
    raise UnsupportedMediaType(
        f"the body is {what}; expected PNG, JPEG or WebP, or a tensor with shape and dtype in the query{advice}"
    )


def check_size(size: tuple[int, int], *, max_pixels: int, max_side: int) -> None:
    """From the header: the pixels are still compressed."""
    width, height = size
    if width * height > max_pixels or max(width, height) > max_side:
        raise TooLarge(
            f"the picture is {width}x{height} pixels; at most {max_pixels} pixels and {max_side} a side are read",
            width=width,
            height=height,
            max_pixels=max_pixels,
            max_side=max_side,
        )


def converted(picture: Image.Image, channels: int, profile: bytes) -> tuple[Image.Image, str]:
    """The picture in RGB or RGBA, and what that lost."""
    dark = ""
    if picture.mode.startswith("I"):  # 16 bits a pixel, which the imaging library would clip to white
        deep = np.asarray(picture)
        dark = BLACK if 0 < deep.max() <= LEVELS else ""
        picture = Image.fromarray((deep >> 8).astype(np.uint8))
    found, note = to_srgb(picture, profile)
    note = note or dark
    if channels == RGB and found.mode == "RGBA" and found.getchannel("A").getextrema()[0] != OPAQUE:
        note = "; ".join(filter(None, (note, TRANSPARENCY_DROPPED)))
    return found.convert("RGBA" if channels == RGBA else "RGB"), note


def write_image(pixels: NDArray[np.uint8], asked: Format, *, quality: int | None) -> bytes:
    """`quality` is for lossy formats. *Shapes*: [H,W,3]; [H,W,4] if the format holds transparency.

    *Raises* UnsupportedOutput for sides beyond the format's.
    """
    side = max(pixels.shape[:2])
    if side > asked.longest_side:
        raise UnsupportedOutput(
            f"the picture has a side of {side} pixels; {asked.name} holds at most {asked.longest_side}; ask png"
        )
    return WRITERS[asked.name](pixels, quality or 0)


def _write_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    return _saved(pixels, "JPEG", quality=quality, subsampling=0 if quality >= FULL_COLOUR_QUALITY else 2)


def _write_webp(pixels: NDArray[np.uint8], quality: int) -> bytes:
    return _saved(pixels, "WEBP", quality=quality, method=WEBP_EFFORT)


def _write_avif(pixels: NDArray[np.uint8], quality: int) -> bytes:
    subsampling = "4:4:4" if quality >= FULL_COLOUR_QUALITY else "4:2:0"
    return _saved(pixels, "AVIF", quality=quality, speed=AVIF_SPEED, subsampling=subsampling)


def _saved(pixels: NDArray[np.uint8], pillow: str, **options: int | str) -> bytes:
    out = BytesIO()
    try:
        Image.fromarray(pixels).save(out, pillow, **options)
    except KeyError as exc:  # a build of the imaging library without this format
        raise UnsupportedOutput(f"this server cannot write {pillow}; ask for another image_format") from exc
    return out.getvalue()


WRITERS: Final[Mapping[str, Callable[[NDArray[np.uint8], int], bytes]]] = {
    "jpg": _write_jpeg,
    "png": lambda pixels, quality: write_png(pixels),
    "webp": _write_webp,
    "avif": _write_avif,
}
