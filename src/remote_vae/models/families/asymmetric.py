"""The asymmetric VAEs for inpainting with Stable Diffusion: a larger decoder for the same latents.

They are decoded without picture and mask, as pipelines do that have neither.
"""

from typing import Final

from remote_vae.models.families.autoencoder_kl import SD1
from remote_vae.models.family import Family, Model


def _asymmetric(name: str, repository: str, layers: int, widths: tuple[int, ...]) -> Model:
    config = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "down_block_out_channels": (128, 256, 512, 512),
        "layers_per_down_block": 2,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "up_block_out_channels": widths,
        "layers_per_up_block": layers,
        "latent_channels": 4,
        "sample_size": 256,
        "scaling_factor": 0.18215,
    }
    return Model(name, SD1, repository, "float16", subfolder=None, config=config)


_MODELS: Final = (
    _asymmetric("asymmetric", "cross-attention/asymmetric-autoencoder-kl-x-1-5", 3, (192, 384, 768, 768)),
    _asymmetric("asymmetric-x2", "cross-attention/asymmetric-autoencoder-kl-x-2", 5, (256, 512, 1024, 1024)),
)

FAMILIES: Final = (Family("AsymmetricAutoencoderKL", _MODELS, stages="autoencoder_kl"),)
