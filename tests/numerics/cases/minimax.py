"""MiniMax-H3."""

from typing import Any

import diffusers
import torch

from .case import Case, by_channel, decoded, mode, per_channel

PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tiny_minimax() -> Any:
    """Registers and scales, which begin as zeros or ones, have values."""
    module = diffusers.AutoencoderKLMiniMaxH3(
        block_out_channels=(32,) * 6,
        layers_per_block=1,
        decoder_num_layers=2,
        decoder_num_attention_heads=2,
        decoder_attention_head_dim=32,
        latents_mean=[0.1 * index - 0.7 for index in range(24)],
        latents_std=[0.1 * index + 0.6 for index in range(24)],
    )
    with torch.no_grad():
        module.decoder.register_tokens.normal_()
        for block in module.decoder.transformer_blocks:
            block.scale1.uniform_(0.5, 1.5)
            block.scale2.uniform_(0.5, 1.5)
    return module


def pixels(module: Any, z: torch.Tensor) -> torch.Tensor:
    """As the modular pipeline's step of decoding has it, brought from [0, 1] to [-1, 1]."""
    video = decoded(module, z)
    return (video * per_channel(PIXEL_STD, video) + per_channel(PIXEL_MEAN, video)).clamp(0, 1) * 2 - 1


CASES = {
    "minimax-h3": Case(
        tiny_minimax,
        ((1, 24, 7, 2, 3), (2, 24, 3, 2, 3), (1, 24, 12, 2, 3), (24, 4, 2, 3)),
        (32, 48),
        by_channel,
        lambda module, z: by_channel(module, z.half().float(), inverse=True),
        frames=22,
        decode=pixels,
        encode=lambda module, x: mode(module, ((x + 1) / 2 - per_channel(PIXEL_MEAN, x)) / per_channel(PIXEL_STD, x)),
    ),
}
