"""Representation autoencoders, which normalise and scale by their own code."""

from typing import Any

import diffusers
import torch

from .case import Case


def rae() -> Any:
    """Its statistics are for each cell, as the published ones are."""
    generator = torch.Generator().manual_seed(1)
    return diffusers.AutoencoderRAE(
        encoder_hidden_size=64,
        encoder_patch_size=14,
        encoder_num_hidden_layers=1,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        patch_size=8,
        encoder_input_size=56,
        latents_mean=torch.rand((64, 4, 4), generator=generator),
        latents_std=torch.rand((64, 4, 4), generator=generator) + 0.5,
        scaling_factor=0.37,
    )


CASES = {
    "rae": Case(
        rae,
        ((1, 64, 4, 4), (2, 64, 4, 4), (64, 4, 4)),
        (32, 32),
        lambda module, z: z if z.ndim == 4 else z[None],
        lambda module, z: z,
        decode=lambda module, z: module.decode(z).sample * 2 - 1,
        encode=lambda module, pixels: module.encode((pixels + 1) / 2).latent,
    )
}
