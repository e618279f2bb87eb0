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
