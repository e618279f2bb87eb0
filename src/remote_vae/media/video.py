"""uint8 frames -> MP4."""

from io import BytesIO

import av
import numpy as np
from numpy.typing import NDArray


def write_mp4(frames: NDArray[np.uint8], *, fps: int = 10) -> bytes:
    """*Shapes*: [F,H,W,3]."""
    out = BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()
