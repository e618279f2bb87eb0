"""Videos in files, written for tests."""

import io
import zipfile
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

CODECS = {"mp4": "libx264", "mov": "libx264", "webm": "libvpx-vp9", "matroska": "libx264"}


def moving(count: int = 9, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames of one grey each, which tells their number: 20 + 8 for each. *Shapes*: uint8 [F,H,W,3]."""
    levels = (20 + 8 * np.arange(count)).clip(0, 255).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def numbers(pixels: np.ndarray) -> list[int]:
    """Which frames of `moving` these are. *Shapes*: [F,H,W,C]."""
    return [round((float(frame.mean()) - 20) / 8) for frame in pixels[..., :3]]


def film(
    frames: np.ndarray,
    kind: str = "mp4",
    *,
    codec: str | None = None,
    rate: float = 10,
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
    rotation: int | None = None,
    colours: tuple[int, int, int] | None = None,
    audio: bool = False,
    **options: str,
) -> bytes:
    """A file of these frames; `times` are milliseconds, and `colours` primaries, transfer and matrix, by H.273."""
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        codec = codec or CODECS[kind]
        stream: Any = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        if codec == "libx265":
            stream.options = {"x265-params": "log-level=none"}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if colours is not None:
            context = stream.codec_context
            context.color_primaries, context.color_trc, context.colorspace = colours
        if audio:
            sound: Any = container.add_stream("aac", rate=44100)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 44100
            container.mux(sound.encode(silence))
            container.mux(sound.encode())
    return out.getvalue()


def av1(frames: np.ndarray, kind: str = "mp4") -> bytes:
    """The same of AV1, by the encoder of still pictures: that of FFmpeg takes real-time priority if it runs as root."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    written, out = io.BytesIO(), io.BytesIO()
    first.save(written, "AVIF", save_all=True, append_images=rest, duration=100, codec="aom", quality=90)
    written.seek(0)
    with av.open(written) as source, av.open(out, "w", format=kind) as container:
        track = source.streams.video[-1]  # the first one is a picture
        stream: Any = container.add_stream_from_template(track, opaque=True)
        for packet in source.demux(track):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return out.getvalue()


def sound_only() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    return out.getvalue()


def animation(frames: np.ndarray, kind: str = "GIF", *, milliseconds: int = 100) -> bytes:
    """An animated GIF or WebP, or a PNG."""
    first, *rest = (Image.fromarray(frame) for frame in frames)
    out = io.BytesIO()
    first.save(out, kind, save_all=True, append_images=rest, duration=milliseconds, lossless=True)
    return out.getvalue()


def picture(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def archive(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as found:
        for name, data in files.items():
            found.writestr(name, data)
    return out.getvalue()


def pictures(frames: np.ndarray) -> bytes:
    """A ZIP of the frames, whose names only numbers put in order."""
    return archive({f"frame{number}.png": picture(frame) for number, frame in reversed(list(enumerate(frames)))})
