"""MP4, MOV, WebM and Matroska -> frames in RGB, in times and colours as their tags say."""

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from io import BytesIO
from typing import Any, Final

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from numpy.typing import NDArray

from remote_vae.errors import InvalidImage, UnsupportedMediaType
from remote_vae.media.moving import Frame, Limits
from remote_vae.values import RGB, Buffer

DEMUXERS: Final[Mapping[str, str]] = {"MP4": "mov", "MOV": "mov", "Matroska": "matroska"}
# By the decoder's name. The library has hundreds more, which nobody needs and a stranger would choose from.
CODECS: Final[Mapping[str, str]] = {
    "h264": "H.264",
    "hevc": "HEVC",
    "libdav1d": "AV1",
    "av1": "AV1",
    "vp8": "VP8",
    "vp9": "VP9",
    "libvpx": "VP8",
    "libvpx-vp9": "VP9",
    "mpeg4": "MPEG-4",
    "prores": "ProRes",
    "ffv1": "FFV1",
    "mjpeg": "Motion JPEG",
}
MOST_STREAMS: Final = 64
UNSAID: Final = 2  # of colours, in the numbers of H.273
BT_2020: Final = 9  # of primaries
HDR: Final[Mapping[int, str]] = {16: "PQ", 18: "HLG"}  # of transfer
HIGH: Final = 720  # lines; from here on players take an untagged video for BT.709
ENCRYPTED_MP4: Final = re.compile(rb"stsd[\s\S]{12}encv")  # ISO 14496-12, 8.12
CLUSTER: Final = b"\x1f\x43\xb6\x75"
ENCRYPTED_MATROSKA: Final = re.compile(rb"\x6d\x80[\s\S]{1,64}\x50\x35")  # ContentEncodings, ContentEncryption
SEGMENT: Final = b"\x18\x53\x80\x67"
CUT_SHORT: Final = "the {} file is broken or cut short; send it again whole"


def frames_of_container(data: Buffer, kind: str, limits: Limits, *, start: float) -> Iterator[Frame]:
    """The frames from the last one before `start` that needs no other frame. *Raises* InvalidImage."""
    check_whole(memoryview(data).cast("B"), kind)
    options = {"codec_whitelist": ",".join(CODECS), "max_streams": str(MOST_STREAMS)}
    with av.open(BytesIO(data), format=DEMUXERS[kind], options=options, metadata_errors="ignore") as container:
        stream = _video_of(container, kind)
        limits.check(stream.width, stream.height)
        stream.codec_context.options = {"max_pixels": str(limits.max_pixels)}
        stream.codec_context.thread_count = 1  # the time that a video takes is counted
        note = ""
        if stream.sample_aspect_ratio not in (None, 0, 1):
            shape = f"{stream.sample_aspect_ratio} times as wide as high"
            note = f"the video's pixels are {shape}, and were encoded as if they were square"
        whole = start <= 0 or not _sought(container, stream, start)
        yield from _decoded(container, stream, kind, limits, note, whole=whole)


def check_whole(data: memoryview, kind: str) -> None:
    """*Raises* InvalidImage for a file that is shorter than it says, and for an encrypted video."""
    matroska = DEMUXERS[kind] == "matroska"
    if _end_of_matroska(data) > len(data) if matroska else _end_of_boxes(data) > len(data):
        raise InvalidImage(CUT_SHORT.format(kind))
    head = bytes(data[: 1 << 20]).partition(CLUSTER)[0]
    if ENCRYPTED_MATROSKA.search(head) if matroska else ENCRYPTED_MP4.search(data):
        raise InvalidImage("the video is encrypted; send it decrypted")


def _end_of_boxes(data: memoryview) -> int:
    """*Source*: ISO 14496-12, 4.2."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        if size == 1:  # it is in the eight bytes after the name
            size = int.from_bytes(data[at + 8 : at + 16])
        if size < 8:  # to the end of the file, or rubbish after the last box
            break
        at += size
    return at


def _end_of_matroska(data: memoryview) -> int:
    """0 if the file does not say. *Source*: RFC 8794, 4 and 6."""
    found = bytes(data[:4096]).find(SEGMENT)
    at = found + len(SEGMENT)
    if found < 0 or at >= len(data):
        return len(data) + 1
    length = 9 - data[at].bit_length()
    size = int.from_bytes(data[at : at + length]) - (1 << 7 * length)
    unsaid = length > 8 or size == (1 << 7 * length) - 1
    return 0 if unsaid else at + length + size


def _video_of(container: InputContainer, kind: str) -> VideoStream:
    """The first stream that is a video and no cover. *Raises* InvalidImage, UnsupportedMediaType."""
    cover = av.stream.Disposition.attached_pic
    found = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not found:
        kinds = sorted({stream.type for stream in container.streams})
        raise InvalidImage(f"the {kind} file holds no video, only {' and '.join(kinds) or 'nothing'}; expected frames")
    context: Any = found[0].codec_context  # None for a codec that the library does not know
    name = "one that is not known here" if context is None else context.name
    if name not in CODECS:
        known = ", ".join(dict.fromkeys(CODECS.values()))
        raise UnsupportedMediaType(f"the video's codec, {name}, is not read; expected one of {known}")
    return found[0]


def _sought(container: InputContainer, stream: VideoStream, start: float) -> bool:
    """Whether the file could be entered before that second; otherwise it is decoded from its beginning."""
    if stream.time_base is None:
        return False
    try:
        container.seek(int(start / stream.time_base) + (stream.start_time or 0), stream=stream)
    except av.error.FFmpegError:
        return False
    return True


def _decoded(
    container: InputContainer, stream: VideoStream, kind: str, limits: Limits, note: str, *, whole: bool
) -> Iterator[Frame]:
    """*Raises* InvalidImage for a packet that is broken, and if there are fewer than the index names."""
    packets, origin = 0, stream.start_time or 0
    base, rate = stream.time_base or Fraction(1, 1000), stream.guessed_rate or Fraction(24)
    begins = Fraction(0)
    for packet in container.demux(stream):
        packets += packet.size > 0
        if packet.is_corrupt:
            raise InvalidImage(CUT_SHORT.format(kind))
        for frame in packet.decode():
            if frame.is_corrupt:
                raise InvalidImage(CUT_SHORT.format(kind))
            if frame.pts is not None:
                begins = (frame.pts - origin) * base
            ends = begins + (frame.duration * base if frame.duration else 1 / rate)
            pixels, lost = _rgb(frame, limits)
            yield Frame(pixels, begins, ends, "; ".join(filter(None, (note, lost))))
            begins = ends
    if whole and packets < stream.frames:
        raise InvalidImage(CUT_SHORT.format(kind))


def _rgb(frame: VideoFrame, limits: Limits) -> tuple[NDArray[np.uint8], str]:
    """The frame's pixels, the right way up, and what was lost. *Raises* InvalidImage for high dynamic range."""
    limits.check(frame.width, frame.height)
    if frame.color_trc in HDR:
        raise InvalidImage(
            f"the video is of high dynamic range ({HDR[frame.color_trc]}), which models do not know; convert it to "
            "BT.709 and send that"
        )
    note = ""
    if frame.color_primaries == BT_2020:
        note = "the colours of BT.2020 were taken for those of sRGB"
    space = frame.colorspace
    if space == UNSAID:
        space = Colorspace.ITU709 if frame.height >= HIGH else Colorspace.ITU601
    wanted = "rgb24" if limits.channels == RGB else "rgba"
    found = frame.reformat(format=wanted, src_colorspace=int(space), dst_color_range=ColorRange.JPEG)
    pixels = np.asarray(found.to_ndarray(), np.uint8)
    turns = round(frame.rotation / 90)  # the library truncates degrees
    if abs(frame.rotation - 90 * turns) > 1:
        note = "; ".join(filter(None, (note, "the video's rotation, which is by no quarters of a turn, was ignored")))
        turns = 0
    return np.rot90(pixels, turns), note
