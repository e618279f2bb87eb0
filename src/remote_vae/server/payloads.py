"""Outcomes -> what replies hold: tensors and pictures, and what a video is to be."""

import numpy as np

from remote_vae.core.layout import MatchedLayout
from remote_vae.engine.job import Outcome
from remote_vae.engine.pool import Served
from remote_vae.media.images import write_image
from remote_vae.media.terms import DEFAULT_QUALITY, VideoTerms
from remote_vae.protocol.options import DecodeOptions
from remote_vae.values import Format, Tensor


def video_terms(model: Served, options: DecodeOptions, fit: MatchedLayout) -> VideoTerms:
    """What a video is to be, by the request, its latent and the model's family."""
    return VideoTerms(
        fit.frames,
        fit.height,
        fit.width,
        fps=options["fps"] or model.recipe.fps,
        quality=options["quality"] or DEFAULT_QUALITY,
        codec=options["codec"] or "",
        full_colour=options["chroma"] == "full",
        streamed=options["stream"],
    )


def write_payload(outcome: Outcome, asked: Format, options: DecodeOptions) -> Tensor | bytes:
    """The reply's payload; writing a picture takes time, so it belongs into a thread."""
    tensor = outcome.tensor
    if asked.is_tensor:
        return tensor
    pixels = np.frombuffer(tensor.buffer, dtype=np.uint8).reshape(tensor.shape)
    return write_image(pixels[0], asked, quality=options["quality"])
