"""The encoder and decoder of FLUX.2's preview, described as the stages that `core.stream` runs.

Every part is checked, not only the class. An architecture that is not recognised gives None; the model then runs by its
own code. *Source*: the module of this preview, `remote_vae.models.previews.taef2`.
"""

from collections.abc import Iterator
from typing import Any

import torch

from remote_vae.core.local import Local, Residual, Stage
from remote_vae.models.previews.taef2 import Block
from remote_vae.models.stages.local_parts import each_of
from remote_vae.models.stages.parts import Unknown, expect
from remote_vae.models.stages.tiny_autoencoder import limited, parts_of, to_unsigned


def describe(module: Any) -> tuple[Local, Local] | None:
    """The decoder and the encoder."""
    try:
        inner = parts_of(module.decoder.layers, _block)
        decoder = each_of(limited, module.config.latent_channels), *inner, each_of(_to_signed, 3)
        encoder = each_of(to_unsigned, 3), *parts_of(module.encoder.layers, _block)
    except (Unknown, AttributeError):
        return None
    return Local((decoder,), pictures=True), Local((encoder,), pictures=True)


def _block(part: Any) -> Iterator[Stage]:
    expect(isinstance(part, Block))
    if part.pool is not None:
        yield Residual(tuple(parts_of(part.pool, _block)))
    yield Residual(tuple(parts_of(part.conv, _block)))
    yield each_of(torch.relu_, part.conv[-1].out_channels)


def _to_signed(unit: torch.Tensor) -> torch.Tensor:
    return unit.mul(2).sub(1).clamp(-1, 1)
