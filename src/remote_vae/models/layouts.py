"""The layouts in which latents travel.

*Source*: the pipelines of diffusers 0.42.1.
"""

from typing import Final

from remote_vae.core.recipe import Rearrange

PATCH: Final = {"i": 2, "j": 2}
GRID: Final = Rearrange("b c h w -> b c h w")
UNBATCHED: Final = Rearrange("c h w -> 1 c h w")
PACKED: Final = Rearrange("b (h w) (c i j) -> b c (h i) (w j)", PATCH)
PACKED_EXTRA_AXIS: Final = Rearrange("1 b (h w) (c i j) -> b c (h i) (w j)", PATCH)  # one client's spelling
ONE_FRAME: Final = Rearrange("b c 1 h w -> b c h w")
VIDEO: Final = Rearrange("b c f h w -> b c f h w")
FRAMES: Final = Rearrange("f c h w -> 1 c f h w")  # one video, whose frames a pipeline hands over as a batch
UNBATCHED_VIDEO: Final = Rearrange("c f h w -> 1 c f h w")

IMAGE_LAYOUTS: Final = (GRID, PACKED, UNBATCHED, PACKED_EXTRA_AXIS)
VIDEO_LAYOUTS: Final = (VIDEO, UNBATCHED_VIDEO)
# Frames before channels; the recipe's operations begin with that order. A latent with as many frames as channels is
# taken for this one.
FRAMES_FIRST_LAYOUTS: Final = (
    Rearrange("b f c h w -> b f c h w"),
    Rearrange("f c h w -> 1 f c h w"),
    Rearrange("b c f h w -> b f c h w"),
    Rearrange("c f h w -> 1 f c h w"),
)
CHANNELS_FIRST: Final = Rearrange("b f c h w -> b c f h w")
