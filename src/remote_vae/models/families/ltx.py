"""The VAEs of LTX-Video 0.9, with eight frames for a latent frame after the first.

Latents are normalised by channel, with statistics that are in the weights. From 0.9.1 on the decoder also takes a
timestep, and the pipelines mix noise into the latent before it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from remote_vae.core.recipe import Affine, Rearrange, Recipe
from remote_vae.models.family import Family, Model, Statistics, Weights, decode_by_class, frames_of_causal
from remote_vae.models.layouts import VIDEO_LAYOUTS
from remote_vae.values import Frames

if TYPE_CHECKING:
    import torch

PACKED_VIDEO: Final = Rearrange("b (f h w) c -> b c f h w")
# The decoder sees all frames at once, so the frames of a packed latent are those that its tokens make.
LTX: Final = Recipe(
    "ltx",
    (*VIDEO_LAYOUTS, PACKED_VIDEO),
    (Affine(("scaling_factor", "latents_mean", "latents_std")),),
    channels=(128,),
    fps=24,
)


def statistics_of_buffers(module: Any) -> Statistics:
    """Mean and deviation by channel, which the weights hold."""
    return tuple(module.latents_mean.tolist()), tuple(module.latents_std.tolist())


def taken(module: Any) -> tuple[str, ...]:
    """What a decoder takes that was trained with timesteps."""
    return ("decode_timestep", "decode_noise_scale", "seed") if module.config.timestep_conditioning else ()


def decode_with_noise(
    module: Any,
    latent: "torch.Tensor",
    *,
    decode_timestep: float = 0.0,
    decode_noise_scale: float | None = None,
    seed: int | None = None,
) -> "torch.Tensor":
    """Pixels of a latent in which `decode_noise_scale` is the share of noise; by default it is the timestep.

    *Source*: LTXPipeline.__call__.
    """
    if not module.config.timestep_conditioning:
        return decode_by_class(module, latent)
    share = decode_timestep if decode_noise_scale is None else decode_noise_scale
    if share:
        latent = blended(latent, share, seed)
    timestep = latent.new_full((len(latent),), decode_timestep)
    with _inner_noise(module, latent, seed):
        pixels: torch.Tensor = module.decode(latent, timestep, return_dict=False)[0]
    return pixels


def blended(latent: "torch.Tensor", share: float, seed: int | None) -> "torch.Tensor":
    """Latent and noise, mixed in the latent's precision as the pipelines do it."""
    from remote_vae.core.noise import noise_like

    part = latent.new_full((), share)
    return (1 - part) * latent + part * noise_like(latent, seed)


@contextmanager
def _inner_noise(module: Any, latent: "torch.Tensor", seed: int | None) -> Iterator[None]:
    """Seeds the noise that a decoder with `inject_noise` draws between its layers, by the global generators."""
    import torch

    if seed is None or not any(module.config.decoder_inject_noise):
        yield
        return
    with torch.random.fork_rng(devices=[latent.device] if latent.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _frames(module: Any) -> Frames:
    """From 0.9.5 on the encoder folds frames into channels, so it takes whole groups only."""
    return replace(frames_of_causal(module), whole="LTXVideo095DownBlock3D" in module.config.down_block_types)


def from_original_names(weights: Weights, module: Any) -> Weights:
    """The tensors of a file with the names of LTX's own code, by the converter of diffusers."""
    if not any(".res_blocks." in name for name in weights):
        return weights
    from diffusers.loaders.single_file_utils import convert_ltx_vae_checkpoint_to_diffusers

    prefixed = {name if name.startswith("vae.") else f"vae.{name}": tensor for name, tensor in weights.items()}
    converted: Weights = convert_ltx_vae_checkpoint_to_diffusers(prefixed)
    return converted


_TIMESTEPS: Final = {
    "decoder_block_out_channels": (256, 512, 1024),
    "decoder_spatio_temporal_scaling": (True, True, True),
    "upsample_residual": (True, True, True),
    "upsample_factor": (2, 2, 2),
    "timestep_conditioning": True,
}
_091: Final = {
    **_TIMESTEPS,
    "decoder_layers_per_block": (5, 6, 7, 8),
    "decoder_inject_noise": (True, True, True, False),
}
_095: Final = {
    **_TIMESTEPS,
    "block_out_channels": (128, 256, 512, 1024, 2048),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "layers_per_block": (4, 6, 6, 2, 2),
    "decoder_layers_per_block": (5, 5, 5, 5),
    "spatio_temporal_scaling": (True, True, True, True),
    "decoder_inject_noise": (False, False, False, False),
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}

_MODELS: Final = (
    Model("ltx", LTX, "Lightricks/LTX-Video", "bfloat16", aliases=("ltx-video", "ltx-0.9.0")),
    Model("ltx-0.9.1", LTX, "diffusers/LTX-Video-0.9.1", "bfloat16", config=_091),
    Model("ltx-0.9.5", LTX, "Lightricks/LTX-Video-0.9.5", "bfloat16", config=_095),
    Model("ltx-0.9.7", LTX, "Lightricks/LTX-Video-0.9.7-dev", "bfloat16", config=_095),
    Model("ltx-0.9.8", LTX, "Lightricks/LTX-Video-0.9.8-13B-distilled", "bfloat16", config=_095),
)

FAMILIES: Final = (
    Family(
        "AutoencoderKLLTXVideo",
        _MODELS,
        tiles=True,
        statistics=statistics_of_buffers,
        convert=from_original_names,
        decode=decode_with_noise,
        takes=taken,
        frames=_frames,
    ),
)
