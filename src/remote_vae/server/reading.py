"""The program that reads pictures and videos, in forks: whatever a body makes one do, ending the fork ends that.

A request to a fork is the length of its head, the head as JSON, and the body. The head of a picture has the words of
`read_image` under "terms", and that of a video also its `Cut` under "cut". A reply is the length of its head, the head
as JSON, and pixels. A fork ends when its pipe does.
"""

import io
import json
import math
import resource
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from remote_vae.engine import malloc
from remote_vae.errors import (
    InternalError,
    InvalidImage,
    RemoteVAEError,
    TooLarge,
    to_json,
)
from remote_vae.media.frames import Cut, read_video
from remote_vae.media.images import ReadPicture, read_image
from remote_vae.server.forks import serve_forks

LENGTH: Final = 4  # bytes of a head's length
FRAMES: Final = 8  # of an exception, in the log
KEPT_BYTES: Final = 256 << 20  # a picture that may take more leaves none of it to the next one
NOTHING: Final = memoryview(b"")
NEEDS_TOO_MUCH: Final = (
    "the body takes more {} to read than an ordinary picture or video; write it again, or less of it, and send that"
)

Message = dict[str, Any]


def read_exactly(pipe: io.RawIOBase, count: int) -> memoryview:
    """*Raises* EOFError if the other end closes before."""
    found = np.empty(count, np.uint8).data  # filling it with zeros would hold the interpreter
    at = 0
    while at < count:
        got = pipe.readinto(found[at:])
        if not got:
            raise EOFError
        at += got
    return found


def write_all(pipe: io.RawIOBase, head: Message, body: memoryview) -> None:
    text = json.dumps(head).encode()
    for part in (memoryview(len(text).to_bytes(LENGTH) + text), body):
        at = 0
        while at < len(part):
            at += pipe.write(part[at:]) or 0


def read_head(pipe: io.RawIOBase) -> Message:
    length = int.from_bytes(read_exactly(pipe, LENGTH))
    head: Message = json.loads(bytes(read_exactly(pipe, length)))
    return head


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # both may come to the whole group; the end of stdin is the sign
        signal.signal(number, signal.SIG_IGN)
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):  # what was sent is written nowhere
        resource.setrlimit(limit, (0, 0))
    warnings.simplefilter("ignore")  # the imaging library's warnings contain bytes of the picture
    malloc.keep_freed()
    Image.init()  # imports the readers of the formats
    serve_forks(_read_all)


def _read_all(pipe: io.FileIO) -> None:
    """Reads one body after the other."""
    while True:
        try:
            head = read_head(pipe)
            _limit(resource.RLIMIT_CPU, math.ceil(_cpu_seconds() + head["cpu_seconds"]))
            _limit(resource.RLIMIT_AS, _address_space() + head["memory_bytes"])
            data = read_exactly(pipe, head["bytes"])
        except EOFError:
            return
        answer, pixels = _read(data, head)
        del data
        write_all(pipe, answer, pixels)
        del pixels
        if head["memory_bytes"] > KEPT_BYTES:
            malloc.give_back()


def _read(data: memoryview, head: Message) -> tuple[Message, memoryview]:
    """The reply."""
    try:
        return _read_picture(data, head)
    except RemoteVAEError as exc:
        return {"error": to_json(exc), "bytes": 0}, NOTHING
    except MemoryError:
        return {"error": to_json(InvalidImage(NEEDS_TOO_MUCH.format("memory"))), "bytes": 0}, NOTHING
    except Exception as exc:  # noqa: BLE001  # boundary: whatever a library raises becomes one answer
        frames = traceback.extract_tb(exc.__traceback__)[-FRAMES:]
        return {
            "error": to_json(InternalError("the body could not be read")),
            "bytes": 0,
            "exception": type(exc).__name__,
            "frames": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames],
        }, NOTHING


def _read_picture(data: memoryview, head: Message) -> tuple[Message, memoryview]:
    """The pixels of a picture, or of the frames of a video.

    A picture of more than `quick_pixels` is only looked at, and the reply is that it is large.
    """
    terms = head["terms"]
    if "cut" in head:
        return _pixels(read_video(data, **terms, cut=Cut(**head["cut"])))
    try:
        found = read_image(data, **{**terms, "max_pixels": min(terms["max_pixels"], head["quick_pixels"])})
    except TooLarge:
        if head["quick_pixels"] < terms["max_pixels"]:
            return {"large": True, "bytes": 0}, NOTHING
        raise
    return _pixels(found)


def _pixels(found: ReadPicture) -> tuple[Message, memoryview]:
    return {"shape": found.pixels.shape, "note": found.note, "bytes": found.pixels.nbytes}, found.pixels.data.cast("B")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _limit(what: int, most: int) -> None:
    """Sets the limit, which may be higher than the last picture's; macOS does not limit the address space."""
    try:
        resource.setrlimit(what, (most, resource.getrlimit(what)[1]))
    except (ValueError, OSError):
        if sys.platform == "linux":
            raise


def _address_space() -> int:
    """Bytes that the process has mapped; 0 if the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


if __name__ == "__main__":
    main()
