"""The VAEs of LTX-Video 0.9, with eight frames for a latent frame after the first.

Latents are normalised by channel, with statistics that are in the weights. From 0.9.1 on the decoder also takes a
timestep, and the pipelines mix noise into the latent before it.
"""

from collections.abc import Callable, Iterator
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


def decode_at_timestep(
    module: Any,
    latent: "torch.Tensor",
    noise_in: Callable[["torch.Tensor"], "torch.Tensor"] = lambda noise: noise,
    *,
    decode_timestep: float = 0.0,
    decode_noise_scale: float | None = None,
    seed: int | None = None,
) -> "torch.Tensor":
    """Pixels of a latent with noise. A decoder with `inject_noise` draws more noise between its layers."""
    if not module.config.timestep_conditioning:
        return decode_by_class(module, latent)
    from remote_vae.core.noise import drawn_from

    share = decode_timestep if decode_noise_scale is None else decode_noise_scale
    latent = with_noise(latent, share, seed, noise_in)
    timestep = latent.new_full((len(latent),), decode_timestep)
    with drawn_from(seed, latent.device):
        pixels: torch.Tensor = module.decode(latent, timestep, return_dict=False)[0]
    return pixels


def with_noise(
    latent: "torch.Tensor",
    share: float,
    seed: int | None,
    noise_in: Callable[["torch.Tensor"], "torch.Tensor"] = lambda noise: noise,
) -> "torch.Tensor":
    """The latent, a share of which is noise. `noise_in` brings normal noise into the range of the latent.

    *Source*: LTXPipeline.__call__.
    """
    if not share:
        return latent
    from remote_vae.core.noise import noise_like

    part = latent.new_full((), share)  # in the latent's precision, as the pipelines have it
    return (1 - part) * latent + part * noise_in(noise_like(latent, seed))


def _frames(module: Any) -> Frames:
    """From 0.9.5 on the encoder folds frames into channels, so it takes whole groups only."""
    return replace(frames_of_causal(module), whole="LTXVideo095DownBlock3D" in module.config.down_block_types)


def from_original_names(weights: Weights, module: Any) -> Weights:
    """The tensors of a file with the names of LTX's own code, in which blocks and resamplers have one list.

    *Source*: diffusers' convert_ltx_vae_checkpoint_to_diffusers and convert_ltx2_vae_to_diffusers.
    """
    if not any(".res_blocks." in name for name in weights):
        return weights
    names = module.state_dict().keys()
    renamed = {name: _renamed(name.removeprefix("vae."), module) for name in weights}
    found = {name: new if new in names else new.replace("shortcut.", "shortcut.conv.") for name, new in renamed.items()}
    return {new: weights[name] for name, new in found.items() if not new.startswith("per_channel_statistics.")}


def _renamed(name: str, module: Any) -> str:
    side, _, rest = name.partition(".")
    kind, _, place = rest.partition(".")
    if kind in ("up_blocks", "down_blocks"):
        index, _, inside = place.partition(".")
        blocks = _blocks(getattr(module, side))
        if int(index) < len(blocks):  # otherwise it is a file of another version, which the loader says
            rest = f"{blocks[int(index)]}.{inside}"
    found = f"{side}.{rest}"
    for theirs, ours in (
        ("res_blocks", "resnets"),
        ("norm3.norm.", "norm3."),
        ("decoder.last_", "decoder."),
        ("per_channel_statistics.mean-of-means", "latents_mean"),
        ("per_channel_statistics.std-of-means", "latents_std"),
    ):
        found = found.replace(theirs, ours)
    return found


def _blocks(side: Any) -> list[str]:
    """The names of a decoder's or encoder's blocks and resamplers in the order in which they run."""
    if hasattr(side, "up_blocks"):
        return ["mid_block", *_names("up_blocks", side.up_blocks, ("conv_in", "upsamplers.0", ""))]
    return [*_names("down_blocks", side.down_blocks, ("", "downsamplers.0", "conv_out")), "mid_block"]


def _names(kind: str, blocks: Any, parts: tuple[str, ...]) -> Iterator[str]:
    """Names of those of the parts that each block has; the empty part is the block's layers."""
    for index, block in enumerate(blocks):
        for part in parts:
            if getattr(block, part.partition(".")[0] or "resnets", None) is not None:
                yield f"{kind}.{index}.{part}".rstrip(".")


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
        stages="ltx_video",
        tiles=True,
        statistics=statistics_of_buffers,
        convert=from_original_names,
        decode=decode_at_timestep,
        takes=taken,
        frames=_frames,
    ),
)
