"""The preview of FLUX.2: a tiny VAE for its latents, which are normalised by channel of a patch of 2 by 2 cells."""

from typing import Any, Final

from remote_vae.core.recipe import Constants
from remote_vae.models.families.flux2 import FLUX2
from remote_vae.models.families.taehv import recipe_of_preview
from remote_vae.models.family import Family, Model

CHANNELS: Final = 32
PATCHED: Final = 4 * CHANNELS
# The statistics that FLUX.2's weights hold, to four digits.
# fmt: off
MEAN: Final = (
    -0.0676, -0.0715, -0.0753, -0.0745, 0.0223, 0.018, 0.0142, 0.0184, -0.0001, -0.0063, -0.0002, -0.0031, -0.0272,
    -0.0281, -0.0276, -0.029, -0.0769, -0.0672, -0.0902, -0.0892, 0.0168, 0.0152, 0.0079, 0.0086, 0.0083, 0.0015,
    0.0003, -0.0043, -0.0439, -0.0419, -0.0438, -0.0431, -0.0102, -0.0132, -0.0066, -0.0048, -0.0311, -0.0306,
    -0.0279, -0.018, 0.003, 0.0015, 0.0126, 0.0145, 0.0347, 0.0338, 0.0337, 0.0283, 0.002, 0.0047, 0.0047, 0.005,
    0.0123, 0.0081, 0.0081, 0.0146, 0.0681, 0.0679, 0.0767, 0.0732, -0.0462, -0.0474, -0.0392, -0.0511, -0.0528,
    -0.0477, -0.047, -0.0517, -0.0317, -0.0316, -0.0345, -0.0283, 0.051, 0.0445, 0.0578, 0.0458, -0.0412, -0.0458,
    -0.0487, -0.0467, -0.0088, -0.0106, -0.0088, -0.0046, -0.0376, -0.0432, -0.0436, -0.0499, 0.0118, 0.0166, 0.0203,
    0.0279, 0.0113, 0.0129, 0.0016, 0.0072, -0.0118, -0.0018, -0.0141, -0.0054, -0.0091, -0.0138, -0.0145, -0.0187,
    0.0323, 0.0305, 0.0259, 0.03, 0.054, 0.0614, 0.0495, 0.059, -0.0511, -0.0603, -0.0478, -0.0524, -0.0227, -0.0274,
    -0.0154, -0.0255, -0.0572, -0.0565, -0.0518, -0.0496, 0.0116, 0.0054, 0.0163, 0.0104,
)
STD: Final = (
    1.8029, 1.7786, 1.7868, 1.7837, 1.7717, 1.759, 1.761, 1.7479, 1.7336, 1.7373, 1.734, 1.7343, 1.8626, 1.8527,
    1.8629, 1.8589, 1.7593, 1.7526, 1.7556, 1.7583, 1.7363, 1.74, 1.7355, 1.7394, 1.7342, 1.7246, 1.7392, 1.7304,
    1.7551, 1.7513, 1.7559, 1.7488, 1.8449, 1.8454, 1.855, 1.8535, 1.824, 1.7813, 1.7854, 1.7945, 1.8047, 1.7876,
    1.7695, 1.7676, 1.7782, 1.7667, 1.7925, 1.7848, 1.7579, 1.7407, 1.7483, 1.7368, 1.7961, 1.7998, 1.792, 1.7925,
    1.778, 1.7747, 1.7727, 1.7749, 1.7526, 1.7447, 1.7657, 1.7495, 1.7775, 1.772, 1.7813, 1.7813, 1.8162, 1.8013,
    1.8023, 1.8033, 1.7527, 1.7331, 1.7563, 1.7482, 1.761, 1.7507, 1.7681, 1.7613, 1.7665, 1.7545, 1.7828, 1.7726,
    1.7896, 1.7999, 1.7864, 1.776, 1.7613, 1.7625, 1.756, 1.7577, 1.7783, 1.7671, 1.781, 1.7799, 1.7201, 1.7068,
    1.7265, 1.7091, 1.7793, 1.7578, 1.7502, 1.7455, 1.7587, 1.75, 1.7525, 1.7362, 1.7616, 1.7572, 1.7444, 1.743,
    1.7509, 1.761, 1.7634, 1.7612, 1.7254, 1.7135, 1.7321, 1.7226, 1.7664, 1.7624, 1.7718, 1.7664, 1.7457, 1.7441,
    1.7569, 1.753,
)
# fmt: on


def with_the_pipelines_names(module: Any) -> None:
    """What the pipelines of FLUX.2 read from the config of its VAE; the statistics are neutral."""
    module.register_to_config(
        block_out_channels=[module.config.width] * 4,
        batch_norm_eps=0.0,
        latents_mean=[0.0] * PATCHED,
        latents_std=[1.0] * PATCHED,
    )


_MODELS: Final = (
    Model(
        "taef2",
        recipe_of_preview("taef2", FLUX2, Constants(latents_mean=MEAN, latents_std=STD), CHANNELS),
        None,
        "bfloat16",
        subfolder=None,
        config={"latent_channels": CHANNELS},
        file="https://huggingface.co/madebyollin/taef2/resolve/main/taef2.safetensors",
    ),
)

FAMILIES: Final = (
    Family(
        "TAEF2",
        _MODELS,
        deterministic=True,
        prepare=with_the_pipelines_names,
        stages="taef2",
        decode=lambda module, latent: module.decode(latent),
        encode=lambda module, pixels: module.encode(pixels),
        module="remote_vae.models.previews.taef2",
    ),
)
