"""An autoencoder whose decoder replaces each cell of a latent by the nearest entry of a codebook, as stages.

*Source*: diffusers' VQModel and VectorQuantizer.
"""

from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
from diffusers.models.autoencoders.vae import VectorQuantizer

from remote_vae.core.stages import Program
from remote_vae.models.stages.autoencoder_kl import describe_decoder, describe_encoder

CELLS: Final = 256  # that are compared with the codebook at a time


def describe(module: Any) -> tuple[Program, Program] | None:
    """The decoder and the encoder."""
    codebook, decoder, encoder = module.quantize, describe_decoder(module), describe_encoder(module)
    if decoder is None or encoder is None or type(codebook) is not VectorQuantizer or decoder.scaled:
        return None
    return replace(decoder, before=partial(_nearest, codebook.embedding.weight.data)), encoder


def _nearest(codebook: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """*Shapes*: codebook [K,C], z [B,C,h,w]."""
    wide = z.permute(0, 2, 3, 1)
    parts = torch.split(wide.flatten(0, 2), CELLS)
    found = [codebook[torch.cdist(cells, codebook).argmin(1)] for cells in parts]
    return torch.cat(found).view(wide.shape).permute(0, 3, 1, 2)
