"""The asymmetric VAEs, decoded without picture and mask."""

import diffusers

from .case import Case

CASES = {
    "asymmetric": Case(
        lambda: diffusers.AsymmetricAutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            down_block_out_channels=(8, 8, 8, 8),
            up_block_types=("UpDecoderBlock2D",) * 4,
            up_block_out_channels=(12, 12, 12, 12),
            norm_num_groups=4,
            scaling_factor=0.37,
        ),
        ((1, 4, 3, 5), (2, 4, 4, 2)),
        (24, 40),
        lambda module, z: z / module.config.scaling_factor,
        lambda module, z: z * module.config.scaling_factor,
    )
}
