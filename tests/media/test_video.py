"""Frames become a video that every player knows."""

import os
import zipfile
from collections.abc import Callable
from io import BytesIO
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, features

from remote_vae.errors import UnsupportedOutput
from remote_vae.media import av1
from remote_vae.media.terms import VideoTerms
from remote_vae.media.video import CODINGS, open_video
from remote_vae.values import VIDEO_FORMATS

CODECS = {"h264": "h264", "hevc": "hevc", "av1": "libdav1d"}  # of an MP4, and FFmpeg's decoder of each
WAYS = [(row.name, codec) for row in VIDEO_FORMATS.values() for codec in row.codecs or ("",)]
STILLS = ("gif", "webp", "avif", "zip")  # formats that Pillow reads


def frames(count: int, height: int, width: int) -> np.ndarray:
    """A gradient that moves."""
    f, y, x = np.mgrid[:count, :height, :width]
    return np.stack([(x * 2 + f * 4) % 200, y * 2 % 200, 100 + f], axis=-1).astype(np.uint8)


def written(pixels: np.ndarray, name: str = "mp4", *, fps: float = 10, out: Any = None, **terms: Any) -> bytes:
    """The video, its frames added a few at a time, as a decode gives them."""
    out = out or BytesIO()
    writer = open_video(out, VIDEO_FORMATS[name], VideoTerms(*pixels.shape[:3], fps=fps, **terms))
    for start in range(0, len(pixels), 4):
        writer.add(pixels[start : start + 4])
    writer.end()
    return out.getvalue()


def read(data: bytes) -> np.ndarray:
    with av.open(BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def read_stills(data: bytes) -> np.ndarray:
    if data.startswith(b"PK"):
        with zipfile.ZipFile(BytesIO(data)) as archive:
            return np.stack([np.asarray(Image.open(archive.open(name))) for name in archive.namelist()])
    found = []
    with Image.open(BytesIO(data)) as picture:
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            found.append(np.asarray(picture.convert("RGB")))
    return np.stack(found)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("count", "height", "width"), [(1, 16, 16), (9, 48, 64), (5, 33, 47), (5, 65, 99)])
def test_frames_come_back(count: int, height: int, width: int, codec: str) -> None:
    """As many frames, in order, of the same size, close to their pixels; but for AV1 an odd side has one line more."""
    if codec == "hevc":
        count, height, width = max(count, 9), height + 64, width + 64
    pixels = frames(count, height, width)
    data = written(pixels, codec=codec)
    with av.open(BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == CODECS[codec]
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 10
    got = read(data)
    odd = 0 if codec == "av1" else 1
    assert got.shape == (count, height + odd * (height % 2), width + odd * (width % 2), 3)
    error = got[:, :height, :width].astype(float) - pixels
    assert np.abs(error).mean() < 8


@pytest.mark.parametrize(("name", "codec"), [way for way in WAYS if way[1] != "hevc"])
@pytest.mark.parametrize("size", [(80, 64), (65, 99), (1, 9)])
def test_every_format_holds_the_frames(name: str, codec: str, size: tuple[int, int]) -> None:
    """Every format gives back as many frames, in order, close to their pixels."""
    pixels = frames(6, *size)
    got = (read_stills if name in STILLS else read)(written(pixels, name, codec=codec))
    assert len(got) == 6
    error = got[:, : size[0], : size[1]].astype(float) - pixels
    assert np.abs(error).mean() < 8


@pytest.mark.parametrize(
    ("name", "quality", "back"),
    [("mkv", 100, read), ("mkv", 95, read), ("zip", 95, read_stills), ("webp", 100, read_stills)],
)
@pytest.mark.parametrize("size", [(48, 64), (33, 47)])
def test_lossless_formats_give_the_very_levels(
    name: str, quality: int, back: Callable[[bytes], np.ndarray], size: tuple[int, int]
) -> None:
    """What is lossless comes back as the very levels, of noise too."""
    noise = np.random.default_rng(0).integers(0, 256, (5, *size, 3), np.uint8)
    np.testing.assert_array_equal(back(written(noise, name, quality=quality)), noise)


@pytest.mark.parametrize(("name", "codec"), [("mp4", "h264"), ("webm", "vp9"), ("webm", "av1"), ("avif", "av1")])
def test_full_chroma(name: str, codec: str) -> None:
    """With colours of full resolution, odd sides stay and lines of one pixel keep their colour."""
    pixels = np.zeros((3, 33, 47, 3), np.uint8)
    pixels[:, ::2, :, 0], pixels[:, 1::2, :, 2] = 255, 255
    back = read_stills if name in STILLS else read
    half, full = (back(written(pixels, name, codec=codec, full_colour=wanted)) for wanted in (False, True))
    assert full.shape == pixels.shape
    half, full = half[0, :33, :47], full[0]
    assert np.abs(full.astype(int) - pixels[0]).mean() < 8 < np.abs(half.astype(int) - pixels[0]).mean()


@pytest.mark.parametrize("name", ["mp4", "webm", "webp", "avif"])
def test_quality_costs_bytes(name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    small, middle, large = (len(written(noise, name, quality=quality)) for quality in (10, 60, 99))
    assert small < middle < large


@pytest.mark.parametrize(
    ("name", "terms", "text"),
    [
        ("mp4", {"codec": "hevc"}, "a side of 8 pixels; codec=hevc needs at least 64"),
        ("mp4", {"codec": "vp9"}, "codec=vp9 is not one that mp4 has; take codec=h264 or hevc or av1"),
        ("gif", {"codec": "av1"}, "codec=av1 is not one that gif has; leave codec out"),
        ("webp", {"streamed": True}, "webp is written as a whole"),
        ("avif", {"streamed": True}, "avif is written as a whole; leave stream out, or ask for mp4 or webm"),
        ("gif", {"fps": 120}, "players slow a gif of 120 frames a second; take fps up to 50, or mp4"),
        ("webp", {"fps": 91}, "take fps up to 90"),
        ("avif", {"fps": 91}, "take fps up to 90"),
    ],
)
def test_what_a_format_cannot_be(name: str, terms: dict[str, Any], text: str) -> None:
    """It is refused before anything is written, in a sentence that says what to do."""
    with pytest.raises(UnsupportedOutput, match=text):
        written(frames(1, 8, 8), name, **terms)


def test_a_library_without_avif(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of the imaging library that cannot write AV1 is said before anything is written."""
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(UnsupportedOutput, match="cannot write AV1; ask for mp4 or webm, and leave codec out"):
        written(frames(1, 8, 8), codec="av1")


def test_sides_beyond_the_format() -> None:
    with pytest.raises(UnsupportedOutput, match=r"a side of 16384 pixels; webm holds at most 16383; ask for mkv"):
        written(np.zeros((1, 2, 16384, 3), np.uint8), "webm")


@pytest.mark.parametrize("fps", [1, 24, 23.976, 29.97, 120])
@pytest.mark.parametrize(("name", "codec"), [("mp4", ""), ("mp4", "av1"), ("webm", ""), ("webm", "av1"), ("mkv", "")])
def test_the_rate_is_heard(fps: float, name: str, codec: str) -> None:
    """A file plays at the rate that was asked for, also at the fractional rates of film and television."""
    with av.open(BytesIO(written(frames(49, 16, 16), name, fps=fps, codec=codec))) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(fps, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "fps", "duration"),
    [("gif", 10, 100), ("webp", 10, 100), ("avif", 10, 100), ("gif", 50, 20), ("webp", 90, 11), ("avif", 90, 11)],
)
def test_pictures_that_move_have_their_rate_and_go_on(name: str, fps: float, duration: int) -> None:
    """Each frame of an animation stays for its share of a second, and the animation begins again."""
    with Image.open(BytesIO(written(frames(5, 64, 64), name, fps=fps))) as picture:
        picture.seek(1)
        picture.load()
        assert picture.info["duration"] == duration
        assert picture.info.get("loop", 0) == 0


BT_601, BT_709 = (6, 5), (1,)  # matrices of H.273; BT.601 has two numbers


@pytest.mark.parametrize("height", [64, 720])
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 200, 0), (30, 60, 220), (255, 255, 255)])
@pytest.mark.parametrize(
    ("name", "codec"), [("mp4", "h264"), ("mp4", "hevc"), ("mp4", "av1"), ("webm", "vp9"), ("webm", "av1")]
)
def test_colours_are_written_as_they_are_tagged(
    colour: tuple[int, int, int], height: int, name: str, codec: str
) -> None:
    """A player that takes the tag at its word, by height BT.601 or BT.709 in the range of television, sees the colour.

    The primaries and the transfer are those of BT.709, which are sRGB's. AV1 has BT.601 at every height.
    """
    matrix = BT_709 if height == 720 and codec != "av1" else BT_601
    pixels = np.broadcast_to(np.array(colour, np.uint8), (9, height, 64, 3))
    with av.open(BytesIO(written(pixels, name, codec=codec))) as container:
        frame = next(container.decode(video=0))
        context = container.streams.video[0].codec_context
    assert int(frame.colorspace) in matrix
    assert int(frame.color_range) == 1
    assert (context.color_primaries, context.color_trc) == (1, 13 if codec == "av1" else 1)
    planes = np.split(frame.to_ndarray(format="yuv420p").reshape(-1), [height * 64, height * 80])
    y, u, v = (int(plane[len(plane) // 2]) for plane in planes)
    luma, cb, cr = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    of_red, of_blue = (0.2126, 0.0722) if matrix is BT_709 else (0.299, 0.114)
    red, blue = luma + 2 * (1 - of_red) * cr, luma + 2 * (1 - of_blue) * cb
    seen = (red, (luma - of_red * red - of_blue * blue) / (1 - of_red - of_blue), blue)
    np.testing.assert_allclose(np.clip(seen, 0, 1) * 255, colour, atol=6)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("count", [1, 5, 400])
def test_the_index_comes_first(count: int, codec: str) -> None:
    """A player can begin before it has the whole file, and nothing is lost of a long video whose frames all differ."""
    count = max(count, 9) if codec == "hevc" else count
    noise = np.random.default_rng(0).integers(0, 255, (count, 64, 64, 3), np.uint8)
    data = written(noise, fps=23.976, codec=codec)
    assert data.index(b"moov") < data.index(b"mdat")
    assert len(read(data)) == count


class Pipe:
    """A file without a seek, as a connection is; knows how much had come after each frame."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)

    def flush(self) -> None:
        pass

    def getvalue(self) -> bytes:
        return self.data


@pytest.mark.parametrize(("name", "codec"), [way for way in WAYS if VIDEO_FORMATS[way[0]].parts and way[1] != "hevc"])
def test_a_video_can_be_sent_while_it_is_written(name: str, codec: str) -> None:
    """What has parts is whole in the end without going back, and its first part comes early."""
    pixels, out, came = frames(96, 32, 32), Pipe(), []
    writer = open_video(out, VIDEO_FORMATS[name], VideoTerms(96, 32, 32, fps=24, codec=codec, streamed=True))
    for frame in pixels:
        writer.add(frame[None])
        came.append(len(out.data))
    writer.end()
    got = (read_stills if name in STILLS else read)(out.data)
    assert len(got) == 96
    if name == "mp4":
        early = out.data[: came[23 if codec == "av1" else 16]]
        assert b"moof" in early
        assert b"mdat" in early
        assert out.data.index(b"moov") < out.data.index(b"moof")


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="only Linux has such priorities")
@pytest.mark.parametrize(("name", "codec"), CODINGS)
def test_no_encoder_takes_priority_over_other_work(name: str, codec: str) -> None:
    """An encoder that asks for real-time priority, as SVT-AV1 does as root, would starve the whole machine."""
    written(frames(9, 64, 64), name, codec=codec)
    tasks = (int(task) for task in os.listdir("/proc/self/task"))
    assert {os.sched_getscheduler(task) for task in tasks} == {os.SCHED_OTHER}


def test_groups_of_av1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames come in groups of two seconds, or of fewer if they are large; a player can begin at each of them.

    Groups have one header, also one of a single frame, and frames stay for equal times.
    """
    pixels = frames(21, 64, 64)
    for most, starts in ((av1.GROUP_BYTES, [0, 20]), (8 * 64 * 64 * 4, [0, 8, 16])):
        monkeypatch.setattr(av1, "GROUP_BYTES", most)
        data = written(pixels, codec="av1", fps=9.99)
        with av.open(BytesIO(data)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        assert [at for at, packet in enumerate(packets) if packet.is_keyframe] == starts
        heads = [bytes(packets[at])[: 2 + bytes(packets[at])[1]] for at in starts]  # a sequence header, and its length
        assert heads[0][0] >> 3 == 1
        assert set(heads) == {heads[0]}
        assert len(set(np.diff([packet.pts for packet in packets]))) == 1
        got = read(data)
        assert got.shape == pixels.shape
        assert np.abs(got.astype(float) - pixels).mean() < 8


def test_an_avif_has_the_colours_of_pictures() -> None:
    """A saturated colour comes back to the level, since an AVIF has the full range."""
    pixels = np.zeros((3, 16, 48, 3), np.uint8)
    for channel in range(3):
        pixels[:, :, channel * 16 : channel * 16 + 16, channel] = 255
    got = read_stills(written(pixels, "avif"))[:, 8, 8::16]
    np.testing.assert_allclose(got, np.broadcast_to(255 * np.eye(3), got.shape), atol=2)
