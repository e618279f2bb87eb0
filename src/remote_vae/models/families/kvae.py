"""KVAE, for pictures and for videos. No pipeline uses these yet; latents are the decoder's own input."""

from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import GRID, UNBATCHED, VIDEO_LAYOUTS
from remote_vae.values import FrameRule, Frames

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from remote_vae.core.pieces import Blocks, Each

SEGMENT_FRAMES: Final = 16  # which its code decodes at a time, after the first frame


def frames_in_segments(module: Any) -> Frames:
    """A last segment of one latent frame gives one frame, and not a group: its code takes it for a first one."""
    group = int(module.config.temporal_compress_times)
    return Frames(group, rule=FrameRule.CHUNKS, span=SEGMENT_FRAMES // group)


def decode_pieces(module: Any, latent: "torch.Tensor", each: "Each") -> "Blocks":
    """Frames segment by segment. *Source*: `_decode` of the class."""
    span, cache, first = SEGMENT_FRAMES // int(module.config.temporal_compress_times), module._make_decoder_cache(), 0

    def net(segment: "torch.Tensor") -> "torch.Tensor":
        pixels: torch.Tensor = module.decoder(segment, cache)
        return pixels

    for segment in _segments(latent, span):
        frames = each(net, segment)[0].transpose(0, 1)
        yield first, 0, frames
        first += len(frames)


def encode_pieces(module: Any, pixels: "torch.Tensor", each: "Each") -> "Blocks":
    """Moments segment by segment; the second half of what the encoder gives is no variance. *Source*: `_encode`."""
    cache, first = module._make_encoder_cache(), 0

    def net(segment: "torch.Tensor") -> "torch.Tensor":
        moments: torch.Tensor = module.encoder(segment, cache)
        return moments

    for segment in _segments(pixels, SEGMENT_FRAMES):
        moments = each(net, segment)[0].transpose(0, 1)
        moments[:, moments.shape[1] // 2 :] = 0
        yield first, 0, moments
        first += len(moments)


def _segments(video: "torch.Tensor", span: int) -> "Iterator[torch.Tensor]":
    """The first one has a frame more than the others."""
    for end in range(span + 1, max(2, video.shape[2]) + span, span):
        yield video[:, :, end - span - (end == span + 1) : end]


_KVAE_2D: Final = Recipe("kvae-2d", (GRID, UNBATCHED), posterior="mode", ratio=8)
# The encoder of videos gives a mean and no variance.
_KVAE_3D: Final = Recipe("kvae-3d", VIDEO_LAYOUTS, posterior="mode", fps=24, ratio=8)

FAMILIES: Final = (
    Family(
        "AutoencoderKLKVAE",
        (Model("kvae-2d", _KVAE_2D, "kandinskylab/KVAE-2D-1.0", "bfloat16", subfolder="diffusers"),),
        stages="kvae",
    ),
    Family(
        "AutoencoderKLKVAEVideo",
        (Model("kvae-3d", _KVAE_3D, "kandinskylab/KVAE-3D-1.0", "bfloat16", subfolder="diffusers"),),
        stages="kvae_video",
        whole_groups=True,
        decode_pieces=decode_pieces,
        encode_pieces=encode_pieces,
        frames=frames_in_segments,
    ),
)
