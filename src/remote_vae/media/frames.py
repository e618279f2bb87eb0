"""The frames of a video that was sent as a file: which of them are taken, and what is lost of them."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from remote_vae.errors import InvalidImage, RemoteVAEError, TooLarge
from remote_vae.media.images import VIDEOS, ReadPicture, format_of, lower_multiple
from remote_vae.media.moving import Frame, Limits, frames_of_animation, frames_of_zip
from remote_vae.values import RGB, Buffer

EARLY: Final = Fraction(1, 1000)  # s; Matroska rounds times to it
UNEVEN: Final = Fraction(3, 2)  # from the shortest time between two frames to the longest


@dataclass(frozen=True, slots=True)
class Cut:
    """Which frames of a video are taken: from `start` on, all or at an even rate of `fps`, at most `most`.

    What lies beyond `most` frames is an error unless `leave_rest`. `count` frames must be there, if it is given.
    *Units*: start in seconds; most_bytes of the pixels of all frames.
    """

    most: int
    most_bytes: int
    start: float = 0.0
    fps: float | None = None
    count: int | None = None
    leave_rest: bool = False


def kind_of_video(data: Buffer) -> str:
    """The format of a file that has frames, by its first bytes; empty for a still picture and for all else."""
    kind = format_of(data)
    if kind == "WEBP":  # the flag of animations: RFC 9649, 2.7
        head = bytes(memoryview(data)[12:21])
        return kind if head[:4] == b"VP8X" and int.from_bytes(head[8:]) & 2 else ""
    return kind if kind in VIDEOS else ""


def read_video(
    data: Buffer, channels: int = RGB, *, multiple: int, max_pixels: int, max_side: int, use_profile: bool, cut: Cut
) -> ReadPicture:
    """The frames of a GIF, animated WebP, MP4, MOV, WebM, Matroska, or ZIP of pictures. *Shapes*: [F,H,W,channels].

    Each frame is turned and resized as `read_image` does it. *Raises* TooLarge, InvalidImage.
    """
    kind = kind_of_video(data)
    limits = Limits(channels, multiple, max_pixels, max_side, use_profile)
    try:
        if kind == "ZIP":
            found = frames_of_zip(data, limits)
        elif kind in ("GIF", "WEBP"):
            found = frames_of_animation(data, kind, limits)
        else:
            from remote_vae.media.containers import frames_of_container  # its library takes a tenth of a second

            found = frames_of_container(data, kind, limits, start=cut.start)
        return _collected(found, cut, limits)
    except (RemoteVAEError, MemoryError):
        raise
    except Exception as exc:  # boundary: of a broken file the libraries raise anything
        raise InvalidImage(f"the {kind} file is broken or cut short; send it again whole") from exc


def _collected(frames: Iterator[Frame], cut: Cut, limits: Limits) -> ReadPicture:
    pixels, count, shape, notes = bytearray(), 0, (0, 0, 0), dict[str, None]()
    wanted = cut.most if cut.count is None else cut.count
    for frame in _chosen(_watched(frames, notes, cut), cut):
        if count == wanted:
            if cut.count is None:
                _end(cut, notes)
            break
        fitted = np.ascontiguousarray(lower_multiple(Image.fromarray(frame), limits.multiple))
        if count and fitted.shape != shape:
            raise InvalidImage(
                f"frame {count + 1} is {fitted.shape[1]}x{fitted.shape[0]} pixels, those before it "
                f"{shape[1]}x{shape[0]}; send frames of one size"
            )
        shape, count = fitted.shape, count + 1
        if len(pixels) + fitted.nbytes > cut.most_bytes:
            raise TooLarge(
                f"the first {count} frames have over {cut.most_bytes} bytes of pixels, the limit here; send a smaller "
                "video, or fewer frames with frames= or fps=",
                limit=cut.most_bytes,
            )
        pixels += fitted.data.cast("B")
    if count < (cut.count or 1):
        beyond = f" from {cut.start:g} s on" if cut.start else ""
        wish = f"; frames={cut.count} needs more" if count else "; expected one or more"
        raise InvalidImage(f"the video has {count or 'no'} frames{beyond}{wish}", frames=count)
    return ReadPicture(np.frombuffer(pixels, np.uint8).reshape(count, *shape), "; ".join(notes))


def _end(cut: Cut, notes: dict[str, None]) -> None:
    """There are more frames than may be. *Raises* TooLarge unless the rest may be left."""
    if not cut.leave_rest:
        raise TooLarge(
            f"the video has more than {cut.most} frames, the limit here; choose some with frames=, start= or fps=, or "
            "take frames=nearest",
            limit=cut.most,
        )
    notes[f"the video goes on after the first {cut.most} frames, the limit here"] = None


def _watched(frames: Iterator[Frame], notes: dict[str, None], cut: Cut) -> Iterator[Frame]:
    """The same frames; their notes are gathered, one of uneven times among them."""
    before: Fraction | None = None
    shortest = longest = Fraction(0)
    for frame in frames:
        if frame.note:
            notes[frame.note] = None
        if before is not None and (gap := frame.begins - before) > 0:
            shortest, longest = min(shortest or gap, gap), max(longest, gap)
            if cut.fps is None and longest > UNEVEN * shortest:
                notes["the times between the frames differ, and each frame was taken once; fps= takes an even rate"] = (
                    None
                )
        before = frame.begins
        yield frame


def _chosen(frames: Iterable[Frame], cut: Cut) -> Iterator[NDArray[np.uint8]]:
    """The pixels of the frames that `cut` takes; each moment of an even rate gets the frame that is nearest.

    *Source*: the rounding of FFmpeg's filter `fps`.
    """
    start = Fraction(cut.start).limit_denominator(10**6)
    if cut.fps is None:
        yield from (frame.pixels for frame in frames if frame.begins > start - EARLY)
        return
    rate = Fraction(cut.fps).limit_denominator(1001)
    last, number = None, 0
    for frame in frames:
        moment = math.floor((frame.begins - start) * rate + Fraction(1, 2))
        while last is not None and number < moment:
            yield last.pixels
            number += 1
        last = frame
    while last is not None and number < math.floor((last.ends - start) * rate + Fraction(1, 2)):
        yield last.pixels
        number += 1
