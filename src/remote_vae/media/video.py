"""uint8 frames -> videos: MP4, WebM, Matroska, GIF, animated WebP and AVIF by FFmpeg, and a ZIP of PNGs.

Frames are added as they come, so that a video can be written while the rest of it is decoded.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, Any, Final

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

from remote_vae.errors import UnsupportedOutput
from remote_vae.media import av1
from remote_vae.media.png import write_png
from remote_vae.media.terms import KEY_SECONDS, VideoTerms, VideoWriter
from remote_vae.values import Format

BT_709: Final = 1  # of primaries, transfer and matrix, in the numbers of H.273
BT_601: Final = 6  # of the matrix
HD_LINES: Final = 720  # from this height on players take the matrix of BT.709 for a video that does not name one
FRAGMENT_SECONDS: Final = 0.2
LOOK_AHEAD: Final = "rc-lookahead=5:bframes=2"  # of a stream, whose file comes ten frames late and is no larger for it
LEAST_SIDE: Final = 64  # the encoder of HEVC writes beyond its memory for less than one of its blocks


@dataclass(frozen=True, slots=True)
class Coding:
    """How FFmpeg writes a format. `half` and `full` are layouts of pixels by the resolution of colours.

    A coding without `full` has colours of half the resolution only; one without `half` has full ones only. `rgb` if
    neither is made of brightness and colours.
    `tag` is the codec's name in a container that has several for it. Without an `encoder`, another library writes AV1.
    Players show an animation of a higher rate than `most_fps` at ten frames a second.
    """

    container: str
    encoder: str = ""
    half: str = ""
    full: str = ""
    rgb: bool = False
    options: Callable[[VideoTerms], Mapping[str, object]] = lambda terms: {}
    head: Callable[[VideoTerms], Mapping[str, object]] = lambda terms: {}
    tag: str = ""
    least_side: int = 1
    least_frames: int = 1
    most_fps: float = 120


def _of_mp4(terms: VideoTerms) -> Mapping[str, object]:
    """The index comes first: in a stream that of each fragment, otherwise in room that is left for it.

    A frame takes up to 37 bytes of the index's tables, the rest less than 4,000 bytes.
    """
    if terms.streamed:
        microseconds = int(FRAGMENT_SECONDS * 1e6)
        return {"movflags": "empty_moov+default_base_moof+delay_moov", "frag_duration": microseconds}
    return {"moov_size": 4000 + 40 * terms.frames}


def _of_matroska(terms: VideoTerms) -> Mapping[str, object]:
    if terms.streamed:
        return {"cluster_time_limit": int(FRAGMENT_SECONDS * 1000)}
    return {"reserve_index_space": 1000 + 30 * terms.frames}


def _of_h264(terms: VideoTerms) -> Mapping[str, object]:
    """In a stream no thread has frames of its own, since the encoder would hold back a frame for each thread."""
    soon = {"x264-params": f"sliced-threads=1:sync-lookahead=0:{LOOK_AHEAD}"} if terms.streamed else {}
    return {"crf": terms.factor, "preset": "veryfast", **_keys(terms), **soon}


def _of_hevc(terms: VideoTerms) -> Mapping[str, object]:
    soon = f":frame-threads=1:{LOOK_AHEAD}" if terms.streamed else ""
    more = {"x265-params": f"log-level=error:info=0{soon}"}
    return {"crf": terms.factor, "preset": "veryfast", **_keys(terms), **more}


def _keys(terms: VideoTerms) -> Mapping[str, object]:
    return {"g": max(1, round(KEY_SECONDS * terms.fps))}


def _of_vp9(terms: VideoTerms) -> Mapping[str, object]:
    speed = {"deadline": "realtime", "cpu-used": 8, "row-mt": 1, "lag-in-frames": 0}
    return {"crf": round(terms.factor * 63 / 51), "b": 0, **speed, **_keys(terms)}


def _of_ffv1(terms: VideoTerms) -> Mapping[str, object]:
    """A line of single pixels cannot be cut into slices."""
    return {"slices": 4 if min(terms.height, terms.width) > 1 else 1}


def _of_webp(terms: VideoTerms) -> Mapping[str, object]:
    return {"lossless": int(terms.quality == 100), "quality": terms.quality, "compression_level": 1}


_LOOP: Final = {"loop": 0}
# By the names of the format and of the codec, if it has several.
CODINGS: Final[Mapping[tuple[str, str], Coding]] = {
    ("mp4", "h264"): Coding("mp4", "libx264", "yuv420p", "yuv444p", head=_of_mp4, options=_of_h264),
    ("mp4", "hevc"): Coding(
        "mp4", "libx265", "yuv420p", "yuv444p", head=_of_mp4, tag="hvc1", least_side=LEAST_SIDE, least_frames=9,
        options=_of_hevc,
    ),
    ("mp4", "av1"): Coding("mp4", head=_of_mp4),
    ("webm", "vp9"): Coding("webm", "libvpx-vp9", "yuv420p", "yuv444p", options=_of_vp9, head=_of_matroska),
    ("webm", "av1"): Coding("webm", head=_of_matroska),
    ("mkv", ""): Coding("matroska", "ffv1", full="bgr0", rgb=True, options=_of_ffv1, head=_of_matroska),
    ("gif", ""): Coding("gif", "gif", full="pal8", rgb=True, head=lambda terms: _LOOP, most_fps=50),
    ("webp", ""): Coding(
        "webp", "libwebp_anim", full="bgra", rgb=True, options=_of_webp, head=lambda terms: _LOOP, most_fps=90,
    ),
    ("avif", "av1"): Coding("avif", head=lambda terms: _LOOP, most_fps=90),
}  # fmt: skip


def open_video(out: IO[bytes], asked: Format, terms: VideoTerms) -> VideoWriter:
    """*Raises* what `check_video` raises."""
    check_video(asked, terms)
    if asked.name == "zip":
        return ZippedPictures(out, terms)
    coding = CODINGS[asked.name, _codec(asked, terms)]
    head = _texts(coding.head(terms))
    return Film(out, coding, head, terms) if coding.encoder else av1.GroupedFilm(out, coding.container, head, terms)


def check_video(asked: Format, terms: VideoTerms) -> None:
    """*Raises* UnsupportedOutput for what the format cannot be."""
    name, sides = asked.name, (terms.height, terms.width)
    if max(sides) > asked.longest_side:
        raise UnsupportedOutput(
            f"the video has a side of {max(sides)} pixels; {name} holds at most {asked.longest_side}; ask for mkv"
        )
    if terms.streamed and not asked.parts:
        raise UnsupportedOutput(f"{name} is written as a whole; leave stream out, or ask for mp4 or webm")
    if terms.codec and terms.codec not in asked.codecs:
        advice = f"take codec={' or '.join(asked.codecs)}" if asked.codecs else "leave codec out"
        raise UnsupportedOutput(f"codec={terms.codec} is not one that {name} has; {advice}")
    if name == "zip":
        return
    codec = _codec(asked, terms)
    coding, what = CODINGS[name, codec], f"codec={codec}" if len(asked.codecs) > 1 else name
    if not coding.encoder:
        av1.check_encoder()
    if min(sides) < coding.least_side:
        raise UnsupportedOutput(
            f"the video has a side of {min(sides)} pixels; {what} needs at least {coding.least_side}; ask for h264"
        )
    if terms.fps > coding.most_fps:
        raise UnsupportedOutput(
            f"players slow a {name} of {terms.fps:g} frames a second; take fps up to {coding.most_fps:g}, or mp4"
        )
    if terms.frames < coding.least_frames:  # FFmpeg refuses one in twelve of such files
        raise UnsupportedOutput(f"{what} needs at least {coding.least_frames} frames; ask for h264")


def _codec(asked: Format, terms: VideoTerms) -> str:
    return terms.codec or next(iter(asked.codecs), "")


class Film:
    """A video that FFmpeg writes; nothing touches the disk.

    Colours of half the resolution need even sides, so an odd side gets its last line twice. Colours say by which matrix
    they are written, because players guess that of an untagged video by its height.
    """

    def __init__(self, out: IO[bytes], coding: Coding, head: dict[str, str], terms: VideoTerms) -> None:
        self._count = 0
        self._full = bool(coding.full) and (terms.full_colour or not coding.half)
        self._layout = coding.full if self._full else coding.half
        high = terms.height >= HD_LINES
        self._matrix = None if coding.rgb else Colorspace.ITU709 if high else Colorspace.ITU601
        self._container = av.open(out, "w", format=coding.container, options=head)
        stream: Any = self._container.add_stream(coding.encoder, rate=terms.rate, options=_texts(coding.options(terms)))
        self._stream, self._rate = stream, terms.rate
        stream.height, stream.width = terms.height, terms.width
        if not self._full:
            stream.height, stream.width = terms.height + terms.height % 2, terms.width + terms.width % 2
        stream.pix_fmt = self._layout
        if coding.tag:
            stream.codec_context.codec_tag = coding.tag
        if self._matrix is not None:
            self._name_colours(stream.codec_context)
        self._palette = _palette(stream.width, stream.height, terms.rate) if self._layout == "pal8" else None

    def _name_colours(self, context: Any) -> None:
        context.color_primaries, context.color_trc, context.color_range = BT_709, BT_709, ColorRange.MPEG
        context.colorspace = BT_709 if self._matrix is Colorspace.ITU709 else BT_601

    def add(self, frames: NDArray[np.uint8]) -> None:
        odd = ((0, 0), (0, 0)) if self._full else tuple((0, side % 2) for side in frames.shape[1:3])
        for pixels in frames:
            even = np.pad(pixels, (*odd, (0, 0)), mode="edge") if np.any(odd) else pixels
            self._container.mux(self._stream.encode(self._frame(np.ascontiguousarray(even))))

    def _frame(self, pixels: NDArray[np.uint8]) -> av.VideoFrame:
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        if self._palette is not None:
            frame = self._palette(frame, self._count)
        elif self._matrix is None:
            frame = frame.reformat(format=self._layout)
        else:
            frame = frame.reformat(format=self._layout, dst_colorspace=self._matrix, dst_color_range=ColorRange.MPEG)
        frame.pts, frame.time_base = self._count, 1 / self._rate
        self._count += 1
        return frame

    def end(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


def _texts(options: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in options.items()}


def _palette(width: int, height: int, rate: Fraction) -> Callable[[av.VideoFrame, int], av.VideoFrame]:
    """Gives each frame the 256 colours that are best for it."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=1 / rate)
    split, colours = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    use, sink = graph.add("paletteuse", "new=1"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(colours, 0, 0)
    split.link_to(use, 1, 0)
    colours.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()

    def through(frame: av.VideoFrame, number: int) -> av.VideoFrame:
        frame.pts, frame.time_base = number, 1 / rate
        source.push(frame)
        found = graph.pull()
        assert isinstance(found, av.VideoFrame)
        return found

    return through


class ZippedPictures:
    """PNGs with numbers as names, which are compressed already and so are only stored."""

    def __init__(self, out: IO[bytes], terms: VideoTerms) -> None:
        self._archive, self._names = zipfile.ZipFile(out, "w"), _names(terms.frames)

    def add(self, frames: NDArray[np.uint8]) -> None:
        for pixels in frames:
            self._archive.writestr(zipfile.ZipInfo(next(self._names)), write_png(pixels))

    def end(self) -> None:
        self._archive.close()


def _names(count: int) -> Iterator[str]:
    digits = max(4, len(str(count)))
    return (f"{number:0{digits}}.png" for number in range(count))
