"""Whether a reply is a whole video, as far as its container shows."""

import io
import struct
import zipfile
from typing import Final

from remote_vae.errors import InvalidReply
from remote_vae.values import Format

MATROSKA: Final = b"\x1a\x45\xdf\xa3"
INDEX: Final = {"mp4": b"moov", "avif": b"meta"}  # a box; an AVIF of one frame has no moov
RIFF_HEAD: Final = 8  # bytes before those that the length counts


def check_video(data: bytes, asked: Format) -> None:
    """*Raises* InvalidReply for what is not a video in this format, or is cut short."""
    match asked.name:
        case "mp4" | "avif":
            kinds = _boxes(data)
            whole = kinds[:1] == [b"ftyp"] and INDEX[asked.name] in kinds
        case "gif":
            whole = data[:4] == b"GIF8" and data[-1:] == b";"
        case "webp":
            whole = data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + RIFF_HEAD == len(data)
        case "zip":
            whole = zipfile.is_zipfile(io.BytesIO(data))
        case _:
            whole = data[:4] == MATROSKA
    if not whole:
        raise InvalidReply(f"the reply is not a whole {asked.name} file; {len(data)} bytes came")


def _boxes(data: bytes) -> list[bytes]:
    """The kinds of the boxes that fill the file exactly, otherwise none. *Source*: ISO 14496-12, 4.2."""
    kinds, position = [], 0
    while position + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        if size == 1 and position + 16 <= len(data):
            size = struct.unpack_from(">Q", data, position + 8)[0]
        elif size == 0:
            size = len(data) - position
        if size < 8:
            break
        kinds.append(kind)
        position += size
    return kinds if position == len(data) else []
