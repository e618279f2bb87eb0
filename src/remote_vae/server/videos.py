"""Which frames of a video are encoded: those that a request names, and that a model can take."""

from typing import Final

import numpy as np

from remote_vae.core.vae_info import VAEInfo
from remote_vae.engine.pool import Served
from remote_vae.errors import InvalidValue, TooLarge
from remote_vae.media.frames import Cut, kind_of_video
from remote_vae.protocol.messages import EncodeRequest
from remote_vae.protocol.options import NEAREST
from remote_vae.server.settings import Settings
from remote_vae.values import ITEM_BYTES, Frames, Tensor

VIDEO_AXES: Final = 5  # of one that has frames


def video_cut(model: Served, info: VAEInfo, request: EncodeRequest, settings: Settings) -> Cut | None:
    """Which frames of the request's video to read; None for a picture, or a model of pictures.

    *Raises* TooLarge for more frames than the limit, InvalidValue for times in a ZIP of pictures.
    """
    if isinstance(request.image, Tensor) or not model.recipe.has_frames:
        return None
    kind, count, options = kind_of_video(request.image), request.options["frames"], request.options
    if not kind:
        return None
    if kind == "ZIP" and (options["start"] or options["fps"]):
        raise InvalidValue("the pictures in a ZIP file have no times; leave fps and start out, and take frames=")
    nearest, most = count == NEAREST, min(settings.max_frames, info.frames.counts.most or settings.max_frames)
    if isinstance(count, int) and count > settings.max_frames:
        raise TooLarge(f"frames would be {count}; the limit here is {settings.max_frames}", limit=settings.max_frames)
    return Cut(
        most=most if nearest else settings.max_frames,
        most_bytes=settings.max_body_bytes,
        start=options["start"] or 0.0,
        fps=options["fps"],
        count=count if isinstance(count, int) else None,
        leave_rest=nearest,
    )


def first_frames(
    model: Served, info: VAEInfo, request: EncodeRequest, image: Tensor, frames: int
) -> tuple[Tensor, int, str]:
    """The frames that the request takes of its video, their number, and what is left out, in a sentence.

    A still can be the first of several frames, which counts all of them.
    *Raises* InvalidValue for options of a video without one.
    """
    options, video = request.options, model.recipe.has_frames
    in_file = not isinstance(request.image, Tensor) and len(image.shape) == VIDEO_AXES
    for name in ("start", "fps") if video else ("frames", "start", "fps"):
        if options[name] is not None and not in_file:
            what = "videos in files" if video else "models of videos"
            raise InvalidValue(f"{name} is for {what}; leave it out", name=name)
    wanted, kept = options["frames"], frames
    if wanted == NEAREST:
        kept = _held(info.frames, info.frames.counts.nearest(frames)[0])
    elif isinstance(wanted, int):
        kept = wanted
        if video and len(image.shape) < VIDEO_AXES and wanted > frames:
            return image, wanted, f"the picture is the first of {wanted} frames, and the others are grey"
        if wanted > frames:
            raise InvalidValue(f"the video has {frames} frames; frames={wanted} needs more", name="frames")
    if kept < frames and len(image.shape) == VIDEO_AXES:
        image = _cut(image, kept, info.pixel_channels)
        if wanted == NEAREST:
            return image, kept, f"the first {kept} of {frames} frames were encoded"
        frames = kept
    return image, frames, _dropped(info.frames, frames) if video else ""


def _held(rule: Frames, frames: int) -> int:
    """How many of these frames are in the latent."""
    held = rule.of_latent(rule.latent(frames))
    return held if 0 < held < frames else frames


def _dropped(rule: Frames, frames: int) -> str:
    held = _held(rule, frames)
    return f"the latent holds the first {held} of {frames} frames, in whole groups" if held < frames else ""


def _cut(video: Tensor, frames: int, channels: int) -> Tensor:
    """The first frames. *Shapes*: [B,P,F,H,W], or uint8 [B,F,H,W,P]."""
    size = ITEM_BYTES[video.dtype]
    values = np.frombuffer(video.buffer, np.uint8).reshape(*video.shape[:-1], video.shape[-1] * size)
    axis = 1 if video.dtype == "uint8" and video.shape[-1] == channels else 2
    found = np.ascontiguousarray(values[(slice(None),) * axis + (slice(frames),)])
    shape = (*video.shape[:axis], frames, *video.shape[axis + 1 :])
    return Tensor(video.dtype, shape, found.reshape(-1).data)
