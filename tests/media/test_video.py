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
