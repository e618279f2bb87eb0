"""Videos in files become frames: the right ones, the right way up, in the right colours."""

from dataclasses import replace
from io import BytesIO
from typing import Any

import av
import numpy as np
import pytest

from films import animation, archive, av1, film, moving, numbers, picture, pictures
from remote_vae.errors import InvalidImage, TooLarge
from remote_vae.media.frames import Cut, kind_of_video, read_video
from remote_vae.media.images import ReadPicture, read_image

CUT = Cut(most=257, most_bytes=2**28)
TERMS: dict[str, Any] = {"multiple": 8, "max_pixels": 2**20, "max_side": 2048, "use_profile": True}
FILES = {
    "MP4": lambda: film(moving()),
    "MP4 of HEVC": lambda: film(moving(), codec="libx265"),
    "MP4 with sound": lambda: film(moving(), audio=True),
    "MOV": lambda: film(moving(), "mov"),
    "MOV of ProRes": lambda: film(moving(), "mov", codec="prores_ks", pix_fmt="yuv422p10le"),
    "WebM of VP8": lambda: film(moving(), "webm", codec="libvpx"),
    "WebM of VP9": lambda: film(moving(), "webm"),
    "Matroska": lambda: film(moving(), "matroska"),
    "MP4 of AV1": lambda: av1(moving()),
    "WebM of AV1": lambda: av1(moving(), "webm"),
    "Matroska of FFV1": lambda: film(moving(), "matroska", codec="ffv1", pix_fmt="bgr0"),
    "10 bits": lambda: film(moving(), codec="libx265", pix_fmt="yuv420p10le"),
    "full colour": lambda: film(moving(), pix_fmt="yuv444p"),
    "GIF": lambda: animation(moving()),
    "WebP": lambda: animation(moving(), "WEBP"),
    "ZIP": lambda: pictures(moving()),
    "ZIP with rubbish": lambda: archive(
        {
            "a/2.png": picture(moving()[1]),
            "__MACOSX/a/._1.png": b"?",
            "a/.DS_Store": b"?",
            "a/1.png": picture(moving()[0]),
        }
    ),
}


def read(data: bytes, channels: int = 3, **choice: Any) -> ReadPicture:
    return read_video(data, channels, **TERMS, cut=replace(CUT, **choice))


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file(name: str) -> None:
    """All frames of a file come in order, in their size, close to the levels that were written."""
    data = FILES[name]()
    assert kind_of_video(data)
    found = read(data)
    count = 2 if "rubbish" in name else 9
    assert found.pixels.shape == (count, 48, 64, 3)
    assert np.abs(found.pixels.astype(int) - moving()[:count]).max() <= 4
    assert found.note == ""


@pytest.mark.parametrize(
    ("kind", "choice", "expected"),
    [
        ("mp4", {"start": 0.3}, [3, 4, 5, 6, 7, 8]),
        ("matroska", {"start": 0.3}, [3, 4, 5, 6, 7, 8]),
        ("mp4", {"start": 0.3, "count": 2}, [3, 4]),
        ("mp4", {"fps": 5.0}, [0, 2, 4, 6, 8]),
        ("webm", {"fps": 20.0, "count": 5}, [0, 0, 1, 1, 2]),
        ("mp4", {"fps": 5.0, "start": 0.2}, [2, 4, 6, 8]),
        ("mp4", {"most": 4, "leave_rest": True}, [0, 1, 2, 3]),
    ],
)
def test_the_frames_that_are_asked_for(kind: str, choice: Any, expected: list[int]) -> None:
    """Frames begin at a second, come at a rate and end at a number, whichever frames the codec needs for them."""
    assert numbers(read(film(moving(), kind, g="4"), **choice).pixels) == expected


def test_times_of_animations() -> None:
    """A GIF's frames are taken by their times; one that says none is shown for a tenth of a second."""
    assert numbers(read(animation(moving(), milliseconds=200), fps=10.0, count=5).pixels) == [0, 0, 1, 1, 2]
    assert numbers(read(animation(moving(), milliseconds=0), fps=5.0, count=3).pixels) == [0, 2, 4]


def test_a_rate_that_varies() -> None:
    """Every frame is taken once, with a note; at an even rate each moment gets the frame that is shown then."""
    data = film(moving(4), times=[0, 100, 500, 600])
    assert numbers(read(data).pixels) == [0, 1, 2, 3]
    assert "times between the frames differ" in read(data).note
    found = read(data, fps=10.0, count=7)
    assert (numbers(found.pixels), found.note) == ([0, 1, 1, 1, 1, 2, 3], "")


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_phones_rotation(rotation: int) -> None:
    """A video that a phone marks as turned comes out the right way up."""
    upright = np.zeros((3, 64, 48, 3), np.uint8)
    upright[:, :16, :16] = 255
    stored = np.rot90(upright, -rotation // 90, axes=(1, 2))
    found = read(film(np.ascontiguousarray(stored), rotation=rotation)).pixels
    assert found.shape == upright.shape
    assert np.abs(found[:, 4:12, 4:12].astype(int) - 255).max() <= 8
    assert found[:, 24:, 24:].max() <= 8


def test_a_rotation_that_is_none() -> None:
    assert "rotation, which is by no quarters of a turn, was ignored" in read(film(moving(2), rotation=30)).note


def test_odd_sizes() -> None:
    """A frame's sides become the next lower multiples, as a picture's do."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 51, 70, 3), np.uint8)
    found = read(pictures(frames)).pixels
    assert found.shape == (2, 48, 64, 3)
    np.testing.assert_array_equal(found[1], read_image(picture(frames[1]), **TERMS).pixels)


@pytest.mark.parametrize("height", [48, 720])
@pytest.mark.parametrize("tags", [None, (1, 1, 1), (6, 6, 6)], ids=["untagged", "BT.709", "BT.601"])
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255)])
def test_colours_by_their_tags(height: int, tags: Any, colour: tuple[int, int, int]) -> None:
    """Saturated colours come back within 4 levels; an untagged video is of BT.709 from 720 lines on."""
    matrix = {None: 1 if height >= 720 else 5, (1, 1, 1): 1, (6, 6, 6): 5}[tags]
    frame = np.broadcast_to(np.array(colour, np.uint8), (height, 64, 3))
    planes = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv444p", dst_colorspace=matrix)
    yuv = planes.to_ndarray()
    out = BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"qp": "1"})
        stream.height, stream.width, stream.pix_fmt = height, 64, "yuv444p"
        if tags is not None:
            context = stream.codec_context
            context.color_primaries, context.color_trc, context.colorspace = tags
        container.mux(stream.encode(av.VideoFrame.from_ndarray(yuv, format="yuv444p")))
        container.mux(stream.encode())
    found = read(out.getvalue()).pixels
    assert np.abs(found.astype(int) - np.array(colour)).max() <= 4


def test_high_dynamic_range() -> None:
    """HDR is refused with what to do; a wide gamut alone is noted."""
    for transfer, name in ((16, "PQ"), (18, "HLG")):
        data = film(moving(2), "matroska", pix_fmt="yuv420p10le", colours=(9, transfer, 9))
        with pytest.raises(InvalidImage, match=rf"high dynamic range \({name}\).*convert it"):
            read(data)
    assert "BT.2020" in read(film(moving(2), "matroska", pix_fmt="yuv420p10le", colours=(9, 14, 9))).note


def test_too_many_and_too_few() -> None:
    """Numbers of frames and of bytes above the limit, and fewer frames than asked for, are refused with the numbers."""
    data = film(moving())
    with pytest.raises(TooLarge, match=r"more than 5 frames.*frames=nearest"):
        read(data, most=5)
    assert "goes on after the first 5 frames" in read(data, most=5, leave_rest=True).note
    with pytest.raises(InvalidImage, match="9 frames; frames=12 needs more"):
        read(data, count=12)
    with pytest.raises(InvalidImage, match="no frames from 60 s on"):
        read(data, start=60.0)
    with pytest.raises(TooLarge, match="the first 3 frames have over 20000 bytes"):
        read(data, most_bytes=20000)


def test_transparency_is_noted() -> None:
    """Transparency of an animation is dropped with a note, or kept for a model that has it."""
    frames = np.full((2, 16, 16, 4), 128, np.uint8)
    frames[1, 0] = 255
    data = animation(frames, "WEBP")
    assert "transparency was dropped" in read(data).note
    assert read(data, channels=4).pixels[0, 0, 0, 3] == 128
    assert read(film(moving(2)), channels=4).pixels[0, 0, 0, 3] == 255


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_noted(kind: str) -> None:
    """A model of pictures gets the first frame, and is told that there are others."""
    found = read_image(animation(moving(3), kind), **TERMS)
    assert "first of 3 frames" in found.note
    assert numbers(found.pixels[None]) == [0]
