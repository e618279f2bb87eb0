"""What a WebP may ask of the imaging library, which makes an object of every chunk."""

from typing import Final

from remote_vae.errors import InvalidImage
from remote_vae.values import Buffer

MOST_CHUNKS: Final = 20_000  # each frame of an animation is one
HEAD: Final = 12  # bytes before the first chunk


def check_chunks(data: Buffer) -> None:
    """*Raises* InvalidImage for more chunks than a picture needs. *Source*: RFC 9649, 2.3."""
    view, at = memoryview(data), HEAD
    end = min(len(view), 8 + int.from_bytes(view[4:8], "little"))  # what follows is not looked at
    for _ in range(MOST_CHUNKS):
        if at >= end:
            return
        size = int.from_bytes(view[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    text = f"the WebP picture has more than {MOST_CHUNKS} chunks; save it again and send that"
    raise InvalidImage(text, limit=MOST_CHUNKS)


def canvas(data: Buffer) -> tuple[int, int]:
    """Width and height of an extended WebP, for which the imaging library takes memory as it opens the file.

    A simple one, which has one picture, gives 1 and 1. *Source*: RFC 9649, 2.7.
    """
    head = bytes(memoryview(data)[HEAD : HEAD + 18])
    if head[:4] != b"VP8X":
        return 1, 1
    return 1 + int.from_bytes(head[12:15], "little"), 1 + int.from_bytes(head[15:18], "little")
