"""A batch that is larger than a server takes at once: requests for its parts, and their replies as one.

The card of the model says what the server takes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np

from remote_vae.client.latents import array_of, tensor_of
from remote_vae.protocol.kinds import LARGEST_SEED
from remote_vae.protocol.messages import DecodeRequest, EncodeRequest, Reply
from remote_vae.values import ITEM_BYTES, RGB, Tensor

Request: TypeAlias = DecodeRequest | EncodeRequest
Card: TypeAlias = Mapping[str, Any]

NEEDED: Final = {
    "limits",
    "latent_layouts",
    "latent_channels",
    "spatial_compression_ratio",
    "temporal_compression_ratio",
}
AXES: Final = re.compile(r"\([^)]*\)|\S+")  # of a layout
PATCH: Final = 4  # latent cells in a patch, whose axis is named "i j"
FLOAT_BYTES: Final = 4
MOST_CHANNELS: Final = 4  # of pixels


def parts_of(request: Request, card: Card) -> list[Request]:
    """The request itself, or requests for parts of its batch, in order, that are within the limits on the card.

    Of a picture only the first latent counts. A seed goes up by the latents before a part, so that parts have other
    noise.
    """
    batch = _batch_of(request, card)
    if batch is None:
        return [request]
    items, most = batch.shape[0], max(1, _most_items(request, batch, card))
    if items <= most:
        return [request]
    if isinstance(request, DecodeRequest) and request.format.is_image:
        return [_part(request, batch, 0, 1)]
    return [_part(request, batch, start, min(start + most, items)) for start in range(0, items, most)]


def joined(replies: list[Reply]) -> Reply:
    """The replies' tensors as one; *raises* nothing, because each has been checked."""
    tensors = [reply.payload for reply in replies if isinstance(reply.payload, Tensor)]
    if len(replies) == 1 or len(tensors) < len(replies):
        return replies[0]
    shape = (sum(tensor.shape[0] for tensor in tensors), *tensors[0].shape[1:])
    whole = bytearray().join(tensor.buffer for tensor in tensors)
    return replace(replies[0], payload=Tensor(tensors[0].dtype, shape, whole))


def _batch_of(request: Request, card: Card) -> Tensor | None:
    """The tensor of a request, if its first axis is the batch."""
    if isinstance(request, DecodeRequest):
        tensor, channels = request.latent, int(card["latent_channels"])
        layouts = [AXES.findall(layout) for layout in card["latent_layouts"]]
        is_batch = any(_fits(axes, tensor.shape, channels) for axes in layouts)
    elif isinstance(request.image, Tensor):
        tensor, channels = request.image, int(card.get("pixel_channels", RGB))
        rank = len(tensor.shape)
        is_batch = rank == 5 or (rank == 4 and channels in (tensor.shape[1], tensor.shape[3]))
    else:
        return None
    return tensor if is_batch else None


def _fits(axes: list[str], shape: tuple[int, ...], channels: int) -> bool:
    """Whether a layout begins with the batch and has this shape's channels."""
    if axes[0] != "b" or len(axes) != len(shape):
        return False
    at = next((place for place, axis in enumerate(axes) if "c" in axis), 0)
    return shape[at] == channels * (PATCH if "i j" in axes[at] else 1)


def _most_items(request: Request, batch: Tensor, card: Card) -> int:
    limits, values = card.get("limits", {}), math.prod(batch.shape[1:])
    most = [limits.get("max_batch", batch.shape[0])]
    most.append(limits.get("max_body_bytes", math.inf) // (ITEM_BYTES[batch.dtype] * values))
    if isinstance(request, DecodeRequest) and request.format.is_tensor:
        cells = values // int(card["latent_channels"])
        pixels = cells * int(card["spatial_compression_ratio"]) ** 2 * int(card["temporal_compression_ratio"])
        item = MOST_CHANNELS * pixels * (1 if request.options["partial_postprocess"] else FLOAT_BYTES)
        most.append(limits.get("max_reply_bytes", math.inf) // max(item, 1))
    return int(min(*most, batch.shape[0]))


def _part(request: Request, batch: Tensor, start: int, end: int) -> Request:
    whole = memoryview(batch.buffer).cast("B")
    item = len(whole) // batch.shape[0]
    tensor = Tensor(batch.dtype, (end - start, *batch.shape[1:]), whole[start * item : end * item])
    options: Any = dict(request.options)
    if options.get("seed") is not None:
        options["seed"] = (options["seed"] + start) % (LARGEST_SEED + 1)
    if isinstance(request, DecodeRequest):
        return replace(request, latent=tensor, options=options)
    return replace(request, image=_in_the_range_of(batch, tensor), options=options)


def _in_the_range_of(batch: Tensor, part: Tensor) -> Tensor:
    """The part, brought to [0, 1] if the whole batch is in [-1, 1] and the server could not see that of this part.

    Servers take floats for [-1, 1] if one of them is negative.
    """
    if batch.dtype == "uint8" or (array_of(part) < 0).any() or not (array_of(batch) < 0).any():
        return part
    return tensor_of((array_of(part).astype(np.float32) + 1) / 2)
