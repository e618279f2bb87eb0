"""uint8 frames -> MP4."""

from fractions import Fraction
from io import BytesIO
from typing import Final

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray

OPTIONS: Final = {"crf": "17", "preset": "veryfast"}  # to the eye no loss
BT_709: Final = 1  # of primaries and of transfer, in the numbers of H.273


def write_mp4(frames: NDArray[np.uint8], *, fps: float) -> bytes:
    """H.264 in yuv420p, which every browser plays; nothing touches the disk.

    *Shapes*: RGB [F,H,W,3]. *Units*: frames per second, also 23.976.
    H.264 halves the colour's resolution, so an odd side gets its last line twice. Colours are written by BT.709 and
    say so, because players guess the matrix of an untagged video by its height. The index comes first, so a player can
    begin before it has the whole file.
    """
    height, width = frames.shape[1:3]
    rate = Fraction(fps).limit_denominator(1001)  # 24000/1001 and the like are exact
    out = BytesIO()
    with av.open(out, "w", format="mp4", options={"moov_size": str(_index_bytes(len(frames)))}) as container:
        stream = container.add_stream("libx264", rate=rate, options=dict(OPTIONS))
        stream.height, stream.width = height + height % 2, width + width % 2
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_primaries, context.color_trc = Colorspace.ITU709, BT_709, BT_709
        context.color_range = ColorRange.MPEG
        for pixels in frames:
            even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(even, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def _index_bytes(frames: int) -> int:
    """Room for the index before the pictures. A frame takes up to 37 bytes of its tables, the rest less than 2,000."""
    return 2000 + 40 * frames
