"""AV1 in MP4, WebM and AVIF, by the imaging library's encoder, which is libaom.

FFmpeg's own encoder is not used, because it takes real-time priority for the process if it runs as root.
"""

from collections.abc import Mapping
from io import BytesIO
from itertools import islice
from typing import IO, Any, Final

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from remote_vae.errors import UnsupportedOutput
from remote_vae.media.terms import KEY_SECONDS, VideoTerms

ENCODER: Final = "aom"
SPEED: Final = 8  # of 10; from 7 on the encoder works in real time
STREAM_SECONDS: Final = 1  # of a group in a stream, which comes when its last frame is there
GROUP_BYTES: Final = 1 << 28  # of frames that wait for the last one of their group
PIXEL_BYTES: Final = 4  # of the imaging library


def check_encoder() -> None:
    """*Raises* UnsupportedOutput for a build of the imaging library without AVIF."""
    if not features.check("avif"):
        raise UnsupportedOutput("this server cannot write AV1; ask for mp4 or webm, and leave codec out")


class GroupedFilm:
    """A video in AV1: groups of frames, each of which begins with a key frame and is encoded when it is whole.

    The imaging library writes a group as an AVIF, whose packets go into the container as they are. Packets say their
    colours: the primaries and the transfer of sRGB and the matrix of BT.601, the only one that the library has. An AVIF
    has the full range of pictures, other containers that of television.
    """

    def __init__(self, out: IO[bytes], container: str, head: Mapping[str, str], terms: VideoTerms) -> None:
        self._container = av.open(out, "w", format=container, options=dict(head))
        self._rate, self._count, self._group = terms.rate, 0, list[Image.Image]()
        seconds = STREAM_SECONDS if terms.streamed else KEY_SECONDS
        held = GROUP_BYTES // (PIXEL_BYTES * terms.height * terms.width)
        self._most = max(2, min(round(seconds * terms.fps), held))
        self._stream: Any = None
        self._how = {
            "codec": ENCODER,
            "speed": SPEED,
            "quality": terms.quality,
            "subsampling": "4:4:4" if terms.full_colour else "4:2:0",
            "range": "full" if container == "avif" else "limited",
        }

    def add(self, frames: NDArray[np.uint8]) -> None:
        for pixels in frames:
            self._group.append(Image.fromarray(pixels))
            if len(self._group) == self._most:
                self._write()

    def end(self) -> None:
        if self._group:
            self._write()
        self._container.close()

    def _write(self) -> None:
        """A frame that is alone is encoded twice, because a still has another header than the other groups."""
        count, out = len(self._group), BytesIO()
        first, *rest = self._group if count > 1 else self._group * 2
        first.save(out, "AVIF", save_all=True, append_images=rest, duration=1, **self._how)
        self._group = []
        with av.open(out, format="mov") as written:
            track = max(written.streams.video, key=lambda one: one.frames)  # the first frame is there as a still, too
            if self._stream is None:
                self._stream = self._container.add_stream_from_template(track, opaque=True)
                self._stream.time_base = 1 / self._rate
            packets = (packet for packet in written.demux(track) if packet.size)
            for packet in islice(packets, count):
                packet.stream, packet.time_base = self._stream, 1 / self._rate
                packet.pts = packet.dts = self._count
                packet.duration = 1
                self._container.mux(packet)
                self._count += 1
