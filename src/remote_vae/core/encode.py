"""Pixels -> posterior -> latent: a recipe run backwards."""

from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch.nn import functional

from remote_vae.core.affine import normalise
from remote_vae.core.execute import RUN_OPTIONS, RunOptions, first_that_fits, own_code, plans, stream
from remote_vae.core.pixels import all_finite, from_signed, signed
from remote_vae.core.plan import Plan, PlanName
from remote_vae.core.recipe import Affine, Decode, NoiseBlend, PixelAffine, Rearrange, Recipe, Select
from remote_vae.core.vae import VAE
from remote_vae.errors import InvalidValue, NonFiniteInput, NonFiniteOutput
from remote_vae.values import Posterior, Scaling

LARGEST_PIXEL = 16.0  # beyond it a float picture is surely in 0..255, which would saturate the encoder


@dataclass(frozen=True, slots=True)
class Encoded:
    """A latent on the CPU; the precision and the plan that ran, `peak_bytes` as predicted where it was.

    `note` is what the caller should know.
    """

    latent: torch.Tensor
    dtype: torch.dtype
    plan: str
    note: str = ""
    peak_bytes: int | None = None


@torch.inference_mode()
def encode(
    vae: VAE,
    recipe: Recipe,
    image: torch.Tensor,
    *,
    scaling: Scaling,
    posterior: Posterior,
    seed: int | None = None,
    options: RunOptions = RUN_OPTIONS,
) -> Encoded:
    """The latent of a picture or video.

    *Shapes*: uint8 [B,H,W,3] or [B,3,H,W], float [B,3,H,W] or [B,3,F,H,W] -> [B,C,h,w] or [B,C,f,h,w], twice the
    channels for parameters. Floats are taken as [-1, 1] when any is negative, else as [0, 1].
    *Raises* NonFiniteInput, InvalidValue, TooLarge when no plan fits, NonFiniteOutput.
    """
    pixels = prepare(image, ratio=vae.info.spatial_compression_ratio, patch=recipe.patch).to(vae.device)
    if recipe.has_frames and pixels.ndim == 4:
        pixels = rearrange(pixels, "b c h w -> b c 1 h w")
    try:
        return _encode(vae, recipe, pixels, scaling, posterior, seed, options)
    except NonFiniteOutput:
        if vae.dtype is torch.float32:
            raise
    with vae.upcast():
        found = _encode(vae, recipe, pixels, scaling, posterior, seed, options)
    return replace(found, note="redone in float32, because the output was not finite")


def _encode(
    vae: VAE,
    recipe: Recipe,
    x: torch.Tensor,
    scaling: Scaling,
    posterior: Posterior,
    seed: int | None,
    options: RunOptions,
) -> Encoded:
    """The recipe's operations, last to first; the posterior's parameters leave before they are normalised."""
    plan = Plan(PlanName.WHOLE)
    for op in reversed(recipe.ops):
        match op:
            case PixelAffine():
                x = from_signed(x, op)
            case Decode():
                x, plan = _moments(vae, x.to(vae.dtype), options)
                if posterior is Posterior.PARAMETERS:
                    break
                x = x if vae.info.deterministic else _draw(x, posterior, seed)
            case Affine():
                x = normalise(x, op, scaling, vae.info.constants).to(x.dtype)
            case Rearrange():
                x = rearrange(x, op.inverse, **op.sizes)
            case Select() | NoiseBlend():
                pass
    if not all_finite(x):
        raise NonFiniteOutput("the VAE gave NaN or infinity, in float32 too")
    return Encoded(x.cpu(), vae.dtype, plan.name, peak_bytes=plan.peak_bytes)


def _moments(vae: VAE, pixels: torch.Tensor, options: RunOptions) -> tuple[torch.Tensor, Plan]:
    """What the encoder gives, and the plan that gave it."""
    program, ratio = vae.encoder, vae.info.spatial_compression_ratio
    sides = tuple(side // ratio for side in pixels.shape[-2:])
    around = 2 * len(pixels) * vae.info.latent_channels * sides[0] * sides[1] * pixels.element_size()

    def attempt(plan: Plan) -> torch.Tensor:
        if plan.strips is None or program is None:
            return own_code(vae, vae.encode, pixels, plan)
        found = pixels.new_empty(len(pixels), program.stages[-1].channels, *sides)

        def put(index: int, row: int, strip: torch.Tensor) -> None:
            found[index, :, row : row + strip.shape[2]] = strip[0]

        stream(program, pixels, plan.strips, put, options)
        return found

    return first_that_fits(plans(program, pixels, options, around_bytes=around), attempt)


def prepare(image: torch.Tensor, *, ratio: int, patch: int) -> torch.Tensor:
    """Pixels in [-1, 1], channels first, sides floored to what the family's pipelines take.

    *Source*: diffusers' VaeImageProcessor.preprocess, whose rule for tensors is nearest-neighbour resizing.
    """
    if image.dtype is torch.uint8:
        if image.shape[1] != 3:
            image = rearrange(image, "b h w c -> b c h w")
        pixels = signed(image.float() / 255)
    else:
        pixels = _signed_of_floats(image.float())
    multiple = ratio * patch
    height, width = (side - side % multiple for side in pixels.shape[-2:])
    if (height, width) == tuple(pixels.shape[-2:]):
        return pixels
    return _resize(pixels, height, width)


def _signed_of_floats(image: torch.Tensor) -> torch.Tensor:
    if not all_finite(image):
        raise NonFiniteInput("the picture holds NaN or infinity")
    largest = float(image.abs().max())
    if largest > LARGEST_PIXEL:
        raise InvalidValue(
            f"the picture's floats go up to {largest:.1f}; expected [0, 1] or [-1, 1], or dtype=uint8 for 0..255",
            largest=largest,
        )
    return signed(image) if float(image.min()) >= 0 else image


def _resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if pixels.ndim == 4:
        return functional.interpolate(pixels, size=(height, width))
    frames = functional.interpolate(rearrange(pixels, "b c f h w -> (b f) c h w"), size=(height, width))
    return rearrange(frames, "(b f) c h w -> b c f h w", b=pixels.shape[0])


def _draw(moments: torch.Tensor, posterior: Posterior, seed: int | None) -> torch.Tensor:
    """The mode, or a sample with noise from the CPU, so that a seed means the same on every device.

    *Source*: diffusers' DiagonalGaussianDistribution.
    """
    mean, logvar = torch.chunk(moments, 2, dim=1)
    if posterior is Posterior.MODE:
        return mean
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    noise = torch.randn(mean.shape, generator=generator, dtype=moments.dtype).to(moments.device)
    return mean + torch.exp(0.5 * torch.clamp(logvar, -30.0, 20.0)) * noise
