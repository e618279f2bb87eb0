"""Frames become a video that every player knows."""

from io import BytesIO

import av
import numpy as np
import pytest

from remote_vae.media.video import write_mp4


def frames(count: int, height: int, width: int) -> np.ndarray:
    """A gradient that moves."""
    f, y, x = np.mgrid[:count, :height, :width]
    return np.stack([(x * 2 + f * 4) % 200, y * 2 % 200, 100 + f], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("count", "height", "width"), [(1, 16, 16), (9, 48, 64), (5, 33, 47)])
def test_frames_come_back(count: int, height: int, width: int) -> None:
    """As many frames, in order, of the same size (an odd side has one line more), close to their pixels."""
    pixels = frames(count, height, width)
    with av.open(BytesIO(write_mp4(pixels, fps=10))) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 10
        got = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(got) == count
    assert got[0].shape == (height + height % 2, width + width % 2, 3)
    error = np.stack(got)[:, :height, :width].astype(float) - pixels
    assert np.abs(error).mean() < 8


@pytest.mark.parametrize("fps", [1, 24, 23.976, 29.97, 120])
def test_the_rate_is_heard(fps: float) -> None:
    """A file plays at the rate that was asked for, also at the fractional rates of film and television."""
    with av.open(BytesIO(write_mp4(frames(4, 16, 16), fps=fps))) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(fps, abs=1e-3)


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 200, 0), (30, 60, 220), (255, 255, 255)])
def test_colours_are_written_as_they_are_tagged(colour: tuple[int, int, int]) -> None:
    """A player that takes the tag at its word, BT.709 in the range of television, sees the colour that was written."""
    pixels = np.broadcast_to(np.array(colour, np.uint8), (3, 32, 32, 3))
    with av.open(BytesIO(write_mp4(pixels, fps=10))) as container:
        frame = next(container.decode(video=0))
    assert (int(frame.colorspace), int(frame.color_range)) == (1, 1)
    y, u, v = (int(plane[8, 8]) for plane in np.split(frame.to_ndarray(format="yuv420p").reshape(-1, 16), [64, 80]))
    luma, cb, cr = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    red, blue = luma + 1.5748 * cr, luma + 1.8556 * cb
    seen = (red, (luma - 0.2126 * red - 0.0722 * blue) / 0.7152, blue)
    np.testing.assert_allclose(np.clip(seen, 0, 1) * 255, colour, atol=6)


@pytest.mark.parametrize("count", [1, 5, 400])
def test_the_index_comes_first(count: int) -> None:
    """A player can begin before it has the whole file, and nothing is lost of a long video whose frames all differ."""
    noise = np.random.default_rng(0).integers(0, 255, (count, 16, 16, 3), np.uint8)
    data = write_mp4(noise, fps=23.976)
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(BytesIO(data)) as container:
        assert sum(1 for _ in container.decode(video=0)) == count
