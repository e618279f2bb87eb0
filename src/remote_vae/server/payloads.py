"""Outcomes -> what replies hold: tensors, pictures and videos."""

from io import BytesIO

import numpy as np

from remote_vae.engine.job import Outcome
from remote_vae.engine.pool import Served
from remote_vae.media.images import write_image
from remote_vae.media.video import DEFAULT_CODEC, DEFAULT_QUALITY, VideoTerms, open_video
from remote_vae.protocol.options import DecodeOptions
from remote_vae.values import Format, Tensor


def video_terms(model: Served, options: DecodeOptions, size: tuple[int, int, int]) -> VideoTerms:
    """What a video is to be, by the request and the model's family. *Units*: `size` in frames, rows and columns."""
    return VideoTerms(
        *size,
        fps=options["fps"] or model.recipe.fps,
        quality=options["quality"] or DEFAULT_QUALITY,
        codec=options["codec"] or DEFAULT_CODEC,
        full_colour=options["chroma"] == "full",
        streamed=options["stream"],
    )


def write_payload(model: Served, outcome: Outcome, asked: Format, options: DecodeOptions) -> Tensor | bytes:
    """The reply's payload; writing pictures and video takes time, so it belongs into a thread."""
    tensor = outcome.tensor
    if asked.is_tensor:
        return tensor
    pixels = np.frombuffer(tensor.buffer, dtype=np.uint8).reshape(tensor.shape)
    if asked.is_image:
        return write_image(pixels[0], asked, quality=options["quality"])
    out = BytesIO()
    frames, rows, columns = pixels.shape[:3]
    writer = open_video(out, asked, video_terms(model, options, (frames, rows, columns)))
    writer.add(pixels)
    writer.end()
    return out.getvalue()
