"""Latent -> pixels: a recipe run forwards."""

from functools import partial

import torch
from einops import rearrange

from remote_vae.core.affine import denormalise
from remote_vae.core.canvas import Canvas
from remote_vae.core.executor import RUN_OPTIONS, RunOptions, execute
from remote_vae.core.layout import MatchedLayout
from remote_vae.core.pixels import all_finite, channels_last, to_uint8, to_unit
from remote_vae.core.recipe import Affine, Copies, Rearrange, Recipe
from remote_vae.core.relay import RelayCanvas
from remote_vae.core.result import Result, or_in_float32
from remote_vae.core.vae import VAE
from remote_vae.errors import NonFiniteInput, NonFiniteOutput
from remote_vae.values import Output, Scaling


@torch.inference_mode()
def decode(
    vae: VAE,
    recipe: Recipe,
    latent: torch.Tensor,
    *,
    fit: MatchedLayout,
    scaling: Scaling,
    output: Output,
    options: RunOptions = RUN_OPTIONS,
) -> Result:
    """Pixels of a latent in one of the recipe's layouts.

    With a relay the frames of a video, RAW ones too, have no axis of batches, and the result is the last of them.
    *Raises* NonFiniteInput, TooLarge if no plan fits, NonFiniteOutput if not even float32 gives finite pixels.
    """
    if not all_finite(latent):
        raise NonFiniteInput("the latent holds NaN or infinity; a diffusion step before this one has gone wrong")
    latent = rearrange(latent, fit.pattern, **_free_sizes(fit))
    if fit.sizes.get("l", 1) > 1:
        latent = rearrange(latent, "(b l) c h w -> b l c h w", l=fit.sizes["l"])[:, 1:].flatten(0, 1)
    latent = latent.to(vae.device)
    return or_in_float32(vae, lambda: _decode(vae, recipe, latent, scaling, output, options), options)


def _free_sizes(fit: MatchedLayout) -> dict[str, int]:
    """The lengths of the axes that einops cannot infer."""
    wire = fit.pattern.split("->")[0]
    return {name: size for name, size in fit.sizes.items() if name in wire.replace("(", " ").replace(")", " ").split()}


def _decode(
    vae: VAE, recipe: Recipe, latent: torch.Tensor, scaling: Scaling, output: Output, options: RunOptions
) -> Result:
    z = _before_vae(recipe, latent, vae, scaling).to(vae.dtype)
    if output is Output.FIRST:
        z = z[:1]  # the first latent, and of a video whose frames are pictures the first frame
    frames = vae.info.frames.of_latent(z.shape[2]) if z.ndim == 5 else 1
    height, width = (side * vae.info.spatial_compression_ratio for side in z.shape[-2:])
    pictures = 1 if output is Output.FIRST else len(z) * frames
    floats = output in (Output.RAW, Output.UNIT)

    def canvas() -> Canvas:
        finish, row_axis = partial(_finish, output=output), 2 if floats else 1
        if options.relay is not None:
            return RelayCanvas(pictures, height, finish, row_axis=row_axis, relay=options.relay)
        return Canvas(pictures, height, finish, row_axis=row_axis)

    size = pictures * vae.info.pixel_channels * height * width * (z.element_size() if floats else 1)
    relayed = None
    if options.relay is not None:  # at most: two groups of frames, and the block that is made of the first of them
        relayed = min(size, 2 * (1 + vae.info.frames.group) * size // pictures + options.relay.most_bytes)
    found, choice = execute(vae.decoders, z, options, canvas, output=size, relayed=relayed)
    if output is Output.RAW and options.relay is None:
        videos = len(latent)
        found = (rearrange(found, "(b f) c h w -> b c f h w", b=videos) if recipe.has_frames else found).contiguous()
    first = 0 if options.relay is None else options.relay.given
    return Result(found.cpu(), vae.dtype, choice.executor.name, peak_bytes=choice.peak_bytes, first=first)


def _before_vae(recipe: Recipe, z: torch.Tensor, vae: VAE, scaling: Scaling) -> torch.Tensor:
    for op in recipe.ops:
        match op:
            case Rearrange():
                z = rearrange(z, op.pattern, **op.sizes)
            case Affine():
                z = denormalise(z, op, scaling, vae.info.constants)
            case Copies():
                z = z[:, -vae.info.latent_channels :]
    return z


def _finish(pixels: torch.Tensor, *, output: Output) -> torch.Tensor:
    """*Raises* NonFiniteOutput."""
    if not all_finite(pixels):
        raise NonFiniteOutput("the VAE gave NaN or infinity, in float32 too; the latent lies outside its range")
    if output is Output.RAW:
        return pixels
    unit = to_unit(pixels)
    return unit.contiguous() if output is Output.UNIT else channels_last(to_uint8(unit))
