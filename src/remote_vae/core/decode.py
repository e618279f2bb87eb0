"""Latent -> pixels: a recipe run forwards."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from einops import rearrange

from remote_vae.core.affine import denormalise
from remote_vae.core.execute import RUN_OPTIONS, RunOptions, first_that_fits, own_code, plans, stream
from remote_vae.core.layout import MatchedLayout
from remote_vae.core.pixels import all_finite, channels_last, to_uint8, to_unit
from remote_vae.core.plan import Plan
from remote_vae.core.recipe import Affine, Decode, NoiseBlend, Op, PixelAffine, Rearrange, Recipe, Select
from remote_vae.core.stages import Program
from remote_vae.core.vae import VAE
from remote_vae.errors import NonFiniteInput, NonFiniteOutput
from remote_vae.values import Output, Scaling


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels on the CPU; the precision and the plan that ran, `peak_bytes` as predicted where it was.

    `note` is what the caller should know.
    """

    pixels: torch.Tensor
    dtype: torch.dtype
    plan: str
    note: str = ""
    peak_bytes: int | None = None


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
) -> Decoded:
    """Pixels of a latent in one of the recipe's layouts.

    *Raises* NonFiniteInput, TooLarge when no plan fits, NonFiniteOutput when not even float32 gives finite pixels.
    """
    if not all_finite(latent):
        raise NonFiniteInput("the latent holds NaN or infinity; a diffusion step before this one has gone wrong")
    latent = rearrange(latent, fit.pattern, **_free_sizes(fit))
    if output is Output.FIRST:
        latent = latent[:1]
    latent = latent.to(vae.device)
    try:
        return _decode(vae, recipe, latent, scaling, output, options)
    except NonFiniteOutput:
        if vae.dtype is torch.float32:
            raise
    with vae.upcast():
        found = _decode(vae, recipe, latent, scaling, output, options)
    return replace(found, note="redone in float32, because the output was not finite")


def _free_sizes(fit: MatchedLayout) -> dict[str, int]:
    """The axes that einops cannot see for itself."""
    wire = fit.pattern.split("->")[0]
    return {name: size for name, size in fit.sizes.items() if name in wire.replace("(", " ").replace(")", " ").split()}


def _decode(
    vae: VAE, recipe: Recipe, latent: torch.Tensor, scaling: Scaling, output: Output, options: RunOptions
) -> Decoded:
    at = next(index for index, op in enumerate(recipe.ops) if isinstance(op, Decode))
    z = _apply(recipe.ops[:at], latent, vae, scaling).to(vae.dtype)
    after = tuple(op for op in recipe.ops[at + 1 :] if not isinstance(op, PixelAffine))
    program = None if after else vae.decoder  # what comes after needs the whole output
    ratio = vae.info.spatial_compression_ratio
    item_bytes = z.element_size() if output in (Output.RAW, Output.UNIT) else 1
    around = 3 * len(z) * z.shape[-2] * z.shape[-1] * ratio**2 * item_bytes

    def attempt(plan: Plan) -> torch.Tensor:
        if plan.strips is None or program is None:
            pixels = _apply(after, own_code(vae, vae.decode, z, plan), vae, scaling)
            return _finish(_finite(pixels), recipe.pixel_affine, output)
        canvas = _Canvas(program, z, ratio, recipe.pixel_affine, output)
        stream(program, z, plan.strips, canvas.put, options)
        return canvas.pixels

    found, plan = first_that_fits(plans(program, z, options, around_bytes=around), attempt)
    return Decoded(found.cpu(), vae.dtype, plan.name, peak_bytes=plan.peak_bytes)


def _apply(ops: Iterable[Op], z: torch.Tensor, vae: VAE, scaling: Scaling) -> torch.Tensor:
    """The operations on either side of the VAE."""
    for op in ops:
        match op:
            case Rearrange():
                z = rearrange(z, op.pattern, **op.sizes)
            case Select():
                z = z.narrow(op.axis, op.start, z.shape[op.axis] - op.start)
            case Affine():
                z = denormalise(z, op, scaling, vae.info.constants)
            case NoiseBlend():
                noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
                z = z * (1 - op.scale) + noise.to(z) * op.scale
            case Decode() | PixelAffine():
                raise TypeError("not an operation on latents or raw pixels")
    return z


def _finite(pixels: torch.Tensor) -> torch.Tensor:
    if not all_finite(pixels):
        raise NonFiniteOutput("the VAE gave NaN or infinity, in float32 too; the latent lies outside its range")
    return pixels


class _Canvas:
    """The output of a batch of pictures, finished strip by strip, so that a picture's floats never exist as a whole."""

    def __init__(self, program: Program, z: torch.Tensor, ratio: int, affine: PixelAffine, output: Output) -> None:
        self._affine, self._output = affine, output
        batch, height, width = len(z), z.shape[2] * ratio, z.shape[3] * ratio
        channels = program.stages[-1].channels
        floats = output in (Output.RAW, Output.UNIT)
        shape = (batch, channels, height, width) if floats else (batch, height, width, channels)
        self.pixels = torch.empty(shape, dtype=z.dtype if floats else torch.uint8, device=z.device)

    def put(self, index: int, row: int, strip: torch.Tensor) -> None:
        """*Raises* NonFiniteOutput."""
        done = _finish(_finite(strip), self._affine, self._output)[0]
        rows = slice(row, row + strip.shape[2])
        if self._output in (Output.RAW, Output.UNIT):
            self.pixels[index, :, rows] = done
        else:
            self.pixels[index, rows] = done


def _finish(pixels: torch.Tensor, affine: PixelAffine, output: Output) -> torch.Tensor:
    if output is Output.RAW:
        return pixels.contiguous()
    unit = to_unit(pixels, affine)
    if unit.ndim == 5:
        unit = rearrange(unit, "b c f h w -> (b f) c h w")
    if output is Output.UNIT:
        return unit.contiguous()
    if output is Output.FIRST:
        unit = unit[:1]
    return channels_last(to_uint8(unit))
