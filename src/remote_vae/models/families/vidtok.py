"""VidTok, which turns videos into continuous latents or quantised ones. No pipeline uses it yet."""

from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import Recipe
from remote_vae.models.family import Family, Model
from remote_vae.models.layouts import VIDEO_LAYOUTS
from remote_vae.values import Counts, Frames

if TYPE_CHECKING:
    import torch

NO_VARIANCE: Final = -30.0  # the least logarithm of a variance that the posterior of diffusers has


def decode(module: Any, latent: "torch.Tensor") -> "torch.Tensor":
    """Pixels; the class gives a bare tensor."""
    pixels: torch.Tensor = module.decode(latent)
    return pixels


def encode(module: Any, pixels: "torch.Tensor") -> "torch.Tensor":
    """The parameters of the posterior; a quantised latent has no variance.

    A causal encoder takes groups of frames only, so the first frame is repeated until it is one, as `forward` does.
    """
    from torch.nn.functional import pad

    if module.is_causal:
        pixels = pad(pixels, (0, 0, 0, 0, module.temporal_compression_ratio - 1, 0), mode="replicate")
    found = module.encode(pixels)
    if module.regularizer == "fsq":
        latent: torch.Tensor = found[0]
        return pad(latent, (0, 0, 0, 0, 0, 0, 0, latent.shape[1]), value=NO_VARIANCE)
    moments: torch.Tensor = found.latent_dist.parameters
    return moments


def frames(module: Any) -> Frames:
    """A causal one has one frame for the first latent frame; another one decodes whole batches of latent frames."""
    group = int(module.temporal_compression_ratio)
    if module.is_causal:
        return Frames(group)
    batch = int(module.num_latent_frames_batch_size)
    return Frames(group, first=group, latents=Counts(batch, batch))


def forget(module: Any) -> None:
    """Drops the last frames of each convolution."""
    for half in (module.encoder, module.decoder):
        module._empty_causal_cached(half)


_RECIPE: Final = Recipe("vidtok", VIDEO_LAYOUTS, fps=24)
# Continuous latents of four channels, causal, 4 by 8 by 8 pixels to a cell.
_MODELS: Final = (Model("vidtok", _RECIPE, "microsoft/VidTok", "float32", subfolder=None),)

FAMILIES: Final = (
    Family(
        "AutoencoderVidTok",
        _MODELS,
        stages="vidtok",
        whole_groups=True,
        decode=decode,
        encode=encode,
        frames=frames,
        forget=forget,
    ),
)
