"""The VAE of Stable Video Diffusion: its decoder works on all frames of a video at once, its encoder on pictures."""

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import Affine, Recipe
from remote_vae.models.family import Family, Model, encode_by_class
from remote_vae.models.layouts import CHANNELS_FIRST, FRAMES_FIRST_LAYOUTS

if TYPE_CHECKING:
    import torch

    from remote_vae.core.pieces import Blocks, Each


def decode(module: Any, latent: "torch.Tensor") -> "torch.Tensor":
    """The frames of each video, which the decoder mixes; the class wants them in the batch, and their number."""
    frames = latent.shape[2]
    pixels = module.decode(latent.transpose(1, 2).flatten(0, 1), num_frames=frames, return_dict=False)[0]
    found: torch.Tensor = pixels.reshape(-1, frames, *pixels.shape[1:]).transpose(1, 2)
    return found


def encode(module: Any, pixels: "torch.Tensor") -> "torch.Tensor":
    """The parameters of the posterior of each frame by itself."""
    moments = encode_by_class(module, pixels.transpose(1, 2).flatten(0, 1))
    return moments.reshape(len(pixels), -1, *moments.shape[1:]).transpose(1, 2)


def encode_pieces(module: Any, pixels: "torch.Tensor", each: "Each") -> "Blocks":
    """The same frame by frame."""
    net = partial(encode_by_class, module)
    for index in range(pixels.shape[2]):
        yield index, 0, each(net, pixels[:, :, index])


# No layout has its channels first: four frames would be taken for four channels.
_RECIPE: Final = Recipe(
    "svd",
    FRAMES_FIRST_LAYOUTS[:2],
    (Affine(("scaling_factor",)), CHANNELS_FIRST),
    posterior="mode",
    channels=(4,),
    fps=7,
    ratio=8,
)
_MODELS: Final = (
    Model(
        "svd",
        _RECIPE,
        "stabilityai/stable-video-diffusion-img2vid-xt",
        "float16",
        aliases=("svd-xt", "stable-video-diffusion"),
        config={
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "sample_size": 768,
        },
    ),
)

FAMILIES: Final = (
    Family(
        "AutoencoderKLTemporalDecoder", _MODELS, stages="svd", decode=decode, encode=encode, encode_pieces=encode_pieces
    ),
)
