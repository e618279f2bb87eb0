"""Sana's autoencoder and those of its class that are made of other parts."""

from typing import Any

import diffusers

from .case import Case


def sana(**config: Any) -> Any:
    return diffusers.AutoencoderDC(
        **{
            "latent_channels": 4,
            "attention_head_dim": 2,
            "encoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
            "decoder_block_types": ["ResBlock", "ResBlock", "EfficientViTBlock"],
            "encoder_block_out_channels": [8, 8, 8],
            "decoder_block_out_channels": [8, 8, 8],
            "encoder_layers_per_block": [1, 1, 1],
            "decoder_layers_per_block": [1, 1, 1],
            "encoder_qkv_multiscales": [[], [], [5]],
            "decoder_qkv_multiscales": [[], [], [5]],
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
            "scaling_factor": 0.37,
            **config,
        }
    )


def dc_ae() -> Any:
    return sana(
        encoder_layers_per_block=[0, 1, 1],
        decoder_layers_per_block=[0, 1, 1],
        encoder_qkv_multiscales=[[], [], []],
        decoder_qkv_multiscales=[[], [], []],
        decoder_norm_types=["batch_norm", "batch_norm", "rms_norm"],
        decoder_act_fns=["relu", "relu", "silu"],
        downsample_block_type="pixel_unshuffle",
        upsample_block_type="pixel_shuffle",
        scaling_factor=0.61,
    )


CASES = {
    name: Case(
        module,
        ((1, 4, 5, 7), (2, 4, 3, 4), (4, 5, 7)),
        (20, 28),
        lambda module, z: (z if z.ndim == 4 else z[None]) / module.config.scaling_factor,
        lambda module, z: z * module.config.scaling_factor,
        encode=lambda module, pixels: module.encode(pixels).latent,
    )
    for name, module in {"sana": sana, "dc-ae-f32c32-in": dc_ae}.items()
}
