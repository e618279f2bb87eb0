"""The pixels of a VAE whose own range is not [-1, 1], for pipelines that bring them to that range themselves."""

from collections.abc import Mapping
from typing import Any

from remote_vae.client.latents import AnyTensor


def of_the_vae(card: Mapping[str, Any], pixels: AnyTensor) -> AnyTensor:
    """The server's pixels, in [-1, 1], as the VAE itself would have given them. *Shapes*: [B,P,...]."""
    if card.get("pixel_range") is None:  # the usual range, or a server that is too old to say so
        return pixels
    floats = pixels.float()
    gain, offset = _by_colour(card, floats)
    return (floats * gain + offset).to(pixels.dtype)


def of_the_server(card: Mapping[str, Any], pixels: AnyTensor) -> AnyTensor:
    """The inverse of `of_the_vae`."""
    if card.get("pixel_range") is None:
        return pixels
    floats = pixels.float()
    gain, offset = _by_colour(card, floats)
    return ((floats - offset) / gain).clamp(-1, 1).to(pixels.dtype)


def _by_colour(card: Mapping[str, Any], pixels: AnyTensor) -> tuple[AnyTensor, AnyTensor]:
    own, shape = card["pixel_range"], (1, -1, *[1] * (pixels.ndim - 2))
    return pixels.new_tensor(own["gain"]).view(shape), pixels.new_tensor(own["offset"]).view(shape)
