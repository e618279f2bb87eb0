"""HunyuanImage and HunyuanVideo 1.5."""

import diffusers

from .case import Case

CASES = {
    "hunyuan-image-2.1": Case(
        lambda: diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=16,
            block_out_channels=(32,) * 6,
            layers_per_block=1,
            spatial_compression_ratio=32,
            sample_size=64,
            scaling_factor=0.7,
        ),
        ((1, 16, 2, 4),),
        (64, 128),
        lambda module, z: z / module.config.scaling_factor,
        lambda module, z: z * module.config.scaling_factor,
    ),
    "hunyuanvideo-1.5": Case(
        lambda: diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=16,
            block_out_channels=(32,) * 5,
            layers_per_block=1,
            scaling_factor=0.7,
        ),
        ((1, 16, 3, 2, 3), (1, 16, 1, 2, 2)),
        (32, 48),
        lambda module, z: z / module.config.scaling_factor,
        lambda module, z: z * module.config.scaling_factor,
        frames=5,
    ),
}
