"""KVAE, for pictures and for videos. No pipeline uses these yet; latents are the decoder's own input."""

from typing import Any, Final

from remote_vae.core.recipe import Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import GRID, UNBATCHED, VIDEO_LAYOUTS
from remote_vae.values import FrameRule, Frames

SEGMENT_FRAMES: Final = 16  # which its code decodes at a time, after the first frame


def frames_in_segments(module: Any) -> Frames:
    """A last segment of one latent frame gives one frame, and not a group: its code takes it for a first one."""
    group = int(module.config.temporal_compress_times)
    return Frames(group, rule=FrameRule.CHUNKS, span=SEGMENT_FRAMES // group)


_KVAE_2D: Final = Recipe("kvae-2d", (GRID, UNBATCHED), posterior="mode", ratio=8)
# The encoder of videos gives a mean and no variance.
_KVAE_3D: Final = Recipe("kvae-3d", VIDEO_LAYOUTS, posterior="mode", fps=24, ratio=8)

FAMILIES: Final = (
    Family(
        "AutoencoderKLKVAE",
        (Model("kvae-2d", _KVAE_2D, "kandinskylab/KVAE-2D-1.0", "bfloat16", subfolder="diffusers"),),
    ),
    Family(
        "AutoencoderKLKVAEVideo",
        (Model("kvae-3d", _KVAE_3D, "kandinskylab/KVAE-3D-1.0", "bfloat16", subfolder="diffusers"),),
        whole_groups=True,
        frames=frames_in_segments,
    ),
)
