"""PNG: written in an eighth of the time that the imaging library takes, for files about a fifth larger; and checked."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from remote_vae.values import RGB, RGBA

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
SUB: Final = 1  # the filter: each byte less the same channel's byte to its left
LEVEL: Final = 1
PIXELS: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
METADATA: Final = (b"eXIf", b"iTXt", b"zTXt")
LONGEST_METADATA: Final = 4 << 20
LONGEST_TEXT: Final = 1 << 18  # of EXIF as hexadecimal text; a JPEG, from which it mostly comes, holds 64 KiB of EXIF
MOST_CHUNKS: Final = 10_000  # some writers make one for each line
CHUNK_BYTES: Final = 1024  # for so many more bytes there may be one more; other writers make chunks of 8 KiB
MOST_DESCRIBED: Final = 16  # chunks of metadata that are looked at
COLOUR: Final = {RGB: 2, RGBA: 6}  # the type by the number of channels


def write_png(pixels: NDArray[np.uint8]) -> bytes:
    """*Shapes*: RGB [H,W,3] or RGBA [H,W,4]. *Source*: the PNG specification, 3rd edition, W3C 2025."""
    height, width, channels = pixels.shape
    lines = np.empty((height, 1 + channels * width), np.uint8)
    lines[:, 0] = SUB
    row = pixels.reshape(height, channels * width)
    lines[:, 1 : 1 + channels] = row[:, :channels]
    np.subtract(row[:, channels:], row[:, :-channels], out=lines[:, 1 + channels :])
    header = struct.pack(">2I5B", width, height, 8, COLOUR[channels], 0, 0, 0)
    data = isal_zlib.compress(lines.data, LEVEL)
    return b"".join((SIGNATURE, *_chunk(b"IHDR", header), *_chunk(b"IDAT", data), *_chunk(b"IEND", b"")))


def _chunk(name: bytes, data: bytes) -> Iterable[bytes]:
    return struct.pack(">I", len(data)), name, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


@dataclass(frozen=True, slots=True)
class PngParts:
    """A PNG without what is not pixels. `broken` says what is wrong with the pixels' chunks.

    `metadata` is its EXIF and XMP, `profile` its colour profile; `frames` are those of an animation.
    """

    pixels: bytearray
    metadata: bytes
    profile: bytes
    broken: str
    frames: int = 1


def read_parts(data: memoryview) -> PngParts:
    """What makes up the pixels, its checksums looked at, which the imaging library does not do; never raises.

    Other chunks are dropped, whatever they hold: the imaging library refuses pictures over them.
    """
    kept = bytearray(SIGNATURE)  # bytes, because millions of views of empty chunks would take gigabytes
    described: list[bytes] = []
    profile: bytes | None = None
    broken, frames, most = "there is no IEND", 1, MOST_CHUNKS + len(data) // CHUNK_BYTES
    for count, (name, chunk, checksum) in enumerate(_chunks(data[len(SIGNATURE) :])):
        if count == most:
            broken = f"it has more than {most} chunks"
            break
        if name in PIXELS:
            kept += chunk
            kept += checksum
            if zlib.crc32(chunk[4:]) != int.from_bytes(checksum):
                broken = "a chunk's checksum is not that of its bytes"
                break
            if name == b"IEND":
                broken = ""
                break
        elif name == b"acTL":
            frames = int.from_bytes(chunk[8:12])
        elif len(chunk) > LONGEST_METADATA:
            continue
        elif name == b"iCCP" and profile is None:
            profile = _unpacked(bytes(chunk[8:]).partition(b"\0\0")[2], LONGEST_METADATA)
        elif name in METADATA and len(described) < MOST_DESCRIBED:
            described.append(_readable(bytes(chunk[8:]), name))
    return PngParts(kept, b"".join(described), profile or b"", broken, frames)


def _chunks(rest: memoryview) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Name, all of it but the checksum, and the checksum; the last chunk may be short of what it claims."""
    while rest:
        end = 8 + int.from_bytes(rest[:4])
        yield bytes(rest[4:8]), rest[:end], rest[end : end + 4]
        rest = rest[end + 4 :]


def _readable(body: bytes, name: bytes) -> bytes:
    """A chunk's EXIF or XMP. ImageMagick writes EXIF as hexadecimal text, which it compresses."""
    if name != b"zTXt":
        return body
    title, _, packed = body.partition(b"\0\0")
    if title != b"Raw profile type exif":
        return b""
    try:
        # The name and the length come first. Splitting all of it could make an object of every two bytes.
        return bytes.fromhex(_unpacked(packed, LONGEST_TEXT).split(None, 2)[2].decode("latin-1"))
    except (ValueError, IndexError):
        return b""


def _unpacked(packed: bytes, most: int) -> bytes:
    """What was compressed, up to so many bytes of it; empty if it is broken."""
    try:
        return zlib.decompressobj().decompress(packed, most)
    except zlib.error:
        return b""
