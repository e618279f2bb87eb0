"""Base64 as tools write it -> bytes; in slices, because no other thread runs while one is read."""

import base64
import re
from typing import Final

SLICE: Final = 2**20  # characters
LINES: Final = range(60, 10_000)  # characters of base64 between the line breaks of any tool
BREAKS_AT_END: Final = 8  # characters
Text = bytes | bytearray

URI: Final = re.compile(rb"data:[^,]{0,200};base64,")


def read_base64(text: Text, start: int, end: int, *, into: bytearray | None = None) -> bytearray:
    """The bytes of `text[start:end]`, of which only slices are copied: base64 in one line or in lines of one length.

    They are written into `into`, which may be the text itself, because no byte is written before it has been read. The
    base64 may be a data: URI, and in the alphabet that URLs can hold, in which the padding may be missing. *Raises*
    ValueError for what is not base64 from end to end.
    """
    uri = URI.match(text, start, end)
    start = start if uri is None else uri.end()
    tail = bytes(text[max(start, end - BREAKS_AT_END) : end])
    end -= len(tail) - len(tail.rstrip(b"\r\n"))
    width, step = _lines(text, start, end)
    # A buffer that grows would leave its smaller selves in the heap.
    found, filled = bytearray((end - start + 1) * 3 // 4) if into is None else into, 0
    altchars, standard = None, False
    for at in range(start, end, step):
        piece = bytes(text[at : min(at + step, end)])
        if width:
            piece = _joined(piece, width)
        altchars = b"-_" if b"-" in piece or b"_" in piece else altchars
        standard = standard or b"+" in piece or b"/" in piece
        if altchars and standard:
            raise ValueError("two alphabets are mixed")
        last = at + step >= end
        if last and altchars:
            piece += b"=" * (-len(piece) % 4)
        if not last and b"=" in piece:
            raise ValueError("there is padding before the end")
        data = base64.b64decode(piece, altchars, validate=True)
        found[filled : filled + len(data)] = data
        filled += len(data)
    del found[filled:]
    return found


def _lines(text: Text, start: int, end: int) -> tuple[int, int]:
    """The characters of a line, or 0 for one line, and those of a slice, which are whole lines and whole bytes.

    *Raises* ValueError.
    """
    line_feed = text.find(b"\n", start, end)
    if line_feed < 0:
        return 0, SLICE
    width = line_feed - start - (text[line_feed - 1] == ord("\r"))
    if width not in LINES:
        raise ValueError("there is white space that no tool writes")
    four_lines = 4 * (line_feed + 1 - start)
    return width, SLICE // four_lines * four_lines


def _joined(piece: bytes, width: int) -> bytes:
    """The lines without their breaks. Nothing is split: empty lines would become a million objects."""
    piece = piece.replace(b"\r\n", b"\n")
    breaks = piece[width :: width + 1]
    if breaks.strip(b"\n") or len(breaks) != piece.count(b"\n"):
        raise ValueError("there is white space that no tool writes")
    return piece.replace(b"\n", b"")
