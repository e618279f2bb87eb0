"""Kandinsky's MoVQ, LDM's super-resolution and Stable Cascade's stage A."""

from typing import Any

import diffusers
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

from .case import BLOCKS, Case

THREE: dict[str, Any] = {
    **BLOCKS,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 8),
}


def movq() -> Any:
    """With attention on the lowest level and a factor that is not used, as the published ones have."""
    return diffusers.VQModel(
        **{
            **BLOCKS,
            "down_block_types": ("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
            "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
            "block_out_channels": (32,) * 4,  # its norms have 32 groups, whatever the config says
        },
        latent_channels=4,
        num_vq_embeddings=8,
        vq_embed_dim=4,
        norm_type="spatial",
        scaling_factor=0.37,
    )


def paella() -> Any:
    module = PaellaVQModel(embed_dim=16, bottleneck_blocks=2, num_vq_embeddings=8, scale_factor=0.61)
    for name, parameter in module.named_parameters():
        if name.endswith("gammas"):  # untrained ones are zero and turn the layers off
            parameter.data.uniform_(0.3, 1)
    module.down_blocks[-1][1].running_mean.uniform_(-1, 1)
    module.down_blocks[-1][1].running_var.uniform_(0.3, 3)
    return module


CASES = {
    "movq": Case(
        movq,
        ((1, 4, 3, 5), (2, 4, 4, 2), (4, 3, 5)),
        (24, 40),
        lambda module, z: z if z.ndim == 4 else z[None],
        lambda module, z: z,
        decode=lambda module, z: module.decode(z, force_not_quantize=True)["sample"],
        encode=lambda module, pixels: module.encode(pixels)["latents"],
    ),
    "ldm-super-resolution": Case(
        lambda: diffusers.VQModel(**THREE, latent_channels=3, num_vq_embeddings=64),
        ((1, 3, 6, 10), (2, 3, 4, 4)),
        (24, 40),
        lambda module, z: z,
        lambda module, z: z,
        decode=lambda module, z: module.decode(z).sample,
        encode=lambda module, pixels: module.encode(pixels).latents,
    ),
    "stable-cascade": Case(
        paella,
        ((1, 4, 5, 7), (2, 4, 4, 4)),
        (20, 28),
        lambda module, z: module.config.scale_factor * z,
        lambda module, z: z / module.config.scale_factor,
        decode=lambda module, z: module.decode(z).sample * 2 - 1,
        encode=lambda module, pixels: module.encode((pixels + 1) / 2).latents,
    ),
}
