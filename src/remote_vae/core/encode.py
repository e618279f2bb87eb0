"""Pixels -> posterior -> latent: a recipe run backwards."""

import torch
from einops import rearrange
from torch.nn import functional

from remote_vae.core.affine import normalise
from remote_vae.core.canvas import Canvas
from remote_vae.core.executor import RUN_OPTIONS, Choice, RunOptions, execute
from remote_vae.core.noise import noise_like
from remote_vae.core.pixels import all_finite, pictures_of, signed
from remote_vae.core.recipe import Affine, Copies, Rearrange, Recipe, Rounded
from remote_vae.core.result import Result, or_in_float32
from remote_vae.core.vae import VAE
from remote_vae.errors import InvalidValue, NonFiniteInput, NonFiniteOutput
from remote_vae.values import RGB, Posterior, Scaling

LARGEST_PIXEL = 16.0  # a float picture with larger values is surely in 0..255, which would saturate the encoder


@torch.inference_mode()
def encode(
    vae: VAE,
    recipe: Recipe,
    image: torch.Tensor,
    *,
    scaling: Scaling,
    posterior: Posterior,
    seed: int | None = None,
    empty: int = 0,
    options: RunOptions = RUN_OPTIONS,
) -> Result:
    """The latent of a picture or video, or of a video of a picture and so many `empty` frames after it.

    *Shapes*: [B,P,H,W] or [B,P,F,H,W], of uint8 also [B,H,W,P] or [B,F,H,W,P] -> [B,C,h,w] or [B,C,f,h,w], twice the
    channels for parameters; P is the model's pixel channels. Floats mean [-1, 1] if any is negative, otherwise [0, 1].
    *Raises* NonFiniteInput, InvalidValue, TooLarge if no plan fits, NonFiniteOutput.
    """
    info = vae.info
    cells = 1 if posterior is Posterior.PARAMETERS else recipe.cells
    multiple = info.spatial_compression_ratio * cells
    pixels = prepare(image, info.pixel_channels, multiple=multiple).to(vae.device)
    if (recipe.has_frames or recipe.one_frame) and pixels.ndim == 4:
        pixels = rearrange(pixels, "b c h w -> b c 1 h w")
    if empty:
        pixels = functional.pad(pixels, (0, 0, 0, 0, 0, empty))  # grey, as the pipelines that begin with a picture do
    return or_in_float32(vae, lambda: _encode(vae, recipe, pixels, scaling, posterior, seed, options), options)


def _encode(
    vae: VAE,
    recipe: Recipe,
    pixels: torch.Tensor,
    scaling: Scaling,
    posterior: Posterior,
    seed: int | None,
    options: RunOptions,
) -> Result:
    """Runs the recipe from its end to its beginning; the posterior's parameters are returned unnormalised."""
    given = pictures_of(pixels) if recipe.frames_are_pictures else pixels
    x, chosen = _moments(vae, given.to(vae.dtype), options)
    if posterior is not Posterior.PARAMETERS:
        x = x if vae.info.deterministic else _draw(x, posterior, recipe.seed if seed is None else seed)
        for op in reversed(recipe.ops):
            match op:
                case Affine():
                    x = normalise(x, op, scaling, vae.info.constants).to(x.dtype)
                case Rearrange():
                    x = rearrange(x, op.inverse, **{**op.sizes, "b": len(pixels)})
                case Copies():
                    x = x.repeat(1, op.count, *[1] * (x.ndim - 2))
                case Rounded():
                    x = x.to(getattr(torch, op.dtype)).to(x.dtype)
    elif recipe.one_frame:
        x = rearrange(x, "b c 1 h w -> b c h w")
    elif recipe.frames_are_pictures:
        x = rearrange(x, "(b f) c h w -> b c f h w", b=len(pixels))
    if not all_finite(x):
        raise NonFiniteOutput("the VAE gave NaN or infinity, in float32 too")
    return Result(x.cpu(), vae.dtype, chosen.executor.name, peak_bytes=chosen.peak_bytes)


def _moments(vae: VAE, pixels: torch.Tensor, options: RunOptions) -> tuple[torch.Tensor, Choice]:
    """What the encoder gives, and the executor that ran."""
    height, width = (side // vae.info.spatial_compression_ratio for side in pixels.shape[-2:])
    frames = vae.info.frames.latent(pixels.shape[2]) if pixels.ndim == 5 else 1
    size = 2 * len(pixels) * vae.info.latent_channels * frames * height * width * pixels.element_size()

    def canvas() -> Canvas:
        return Canvas(len(pixels) * frames, height, lambda block: block, row_axis=2)

    found, chosen = execute(vae.encoders, pixels, options, canvas, output=size)
    return found if pixels.ndim == 4 else rearrange(found, "(b f) c h w -> b c f h w", f=frames), chosen


def prepare(image: torch.Tensor, channels: int = RGB, *, multiple: int) -> torch.Tensor:
    """Pixels in [-1, 1], channels first, with sides rounded down to a multiple that the encoder can take.

    *Source*: diffusers' VaeImageProcessor.preprocess, which resizes tensors by nearest neighbours.
    """
    if image.dtype is torch.uint8:
        if image.shape[-1] == channels:  # no picture is so narrow
            image = image.movedim(-1, 1)
        # A picture stays channels last, as the pipelines prepare it: another order of sums would change the last bits.
        pixels = signed((image if image.ndim == 4 else image.contiguous()).float() / 255)
    else:
        pixels = _signed_of_floats(image.float())
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
    """The mode, or a sample. *Source*: diffusers' DiagonalGaussianDistribution."""
    mean, logvar = torch.chunk(moments, 2, dim=1)
    if posterior is Posterior.MODE:
        return mean
    return mean + torch.exp(0.5 * torch.clamp(logvar, -30.0, 20.0)) * noise_like(mean, seed)
