"""Latent -> pixels: a recipe run forwards."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from einops import rearrange

from remote_vae.core.affine import Scaling, denormalise
from remote_vae.core.layout import Fit
from remote_vae.core.pixels import all_finite, channels_last, to_uint8, to_unit
from remote_vae.core.recipe import Affine, Decode, NoiseBlend, PixelAffine, Rearrange, Recipe, Select
from remote_vae.core.vae import VAE
from remote_vae.errors import NonFiniteInput, NonFiniteOutput


class Output(StrEnum):
    """What to make of the decoder's output.

    *Shapes*: RAW [B,3,H,W] or [B,3,F,H,W] as the VAE gives it; UNIT the same in [0, 1], but [F,3,H,W] for video;
    UINT8 [B,H,W,3] or [F,H,W,3]; FIRST [1,H,W,3], the first picture or frame.
    """

    RAW = "raw"
    UNIT = "unit"
    UINT8 = "uint8"
    FIRST = "first"


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels on the CPU; `dtype` is what the VAE ran in, `note` is what the caller should know."""

    pixels: torch.Tensor
    dtype: torch.dtype
    note: str = ""


@torch.inference_mode()
def decode(vae: VAE, recipe: Recipe, latent: torch.Tensor, *, fit: Fit, scaling: Scaling, output: Output) -> Decoded:
    """Pixels of a latent in one of the recipe's layouts.

    *Raises* NonFiniteInput, NonFiniteOutput when not even float32 gives finite pixels.
    """
    if not all_finite(latent):
        raise NonFiniteInput("the latent holds NaN or infinity; a diffusion step before this one has gone wrong")
    latent = rearrange(latent, fit.pattern, **_free_sizes(fit))
    if output is Output.FIRST:
        latent = latent[:1]
    latent = latent.to(vae.device)
    pixels, dtype, note = _run(vae, recipe, latent, scaling), vae.dtype, ""
    if not all_finite(pixels) and vae.dtype is not torch.float32:
        with vae.upcast():
            pixels, dtype = _run(vae, recipe, latent, scaling), vae.dtype
        note = "redone in float32, because the output was not finite"
    if not all_finite(pixels):
        raise NonFiniteOutput("the VAE gave NaN or infinity, in float32 too; the latent lies outside its range")
    return Decoded(_finish(pixels, recipe.pixel_affine, output).cpu(), dtype, note)


def _free_sizes(fit: Fit) -> dict[str, int]:
    """The axes that einops cannot see for itself."""
    wire = fit.pattern.split("->")[0]
    return {name: size for name, size in fit.sizes.items() if name in wire.replace("(", " ").replace(")", " ").split()}


def _run(vae: VAE, recipe: Recipe, z: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """The recipe's operations, up to and without the pixel range."""
    for op in recipe.ops:
        match op:
            case Rearrange():
                z = rearrange(z, op.pattern, **op.sizes)
            case Select():
                z = z.narrow(op.axis, op.start, z.shape[op.axis] - op.start)
            case Affine():
                z = denormalise(z, op, scaling, vae.facts.constants)
            case NoiseBlend():
                noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
                z = z * (1 - op.scale) + noise.to(z) * op.scale
            case Decode():
                z = vae.decode(z.to(vae.dtype))
            case PixelAffine():
                break
    return z


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
