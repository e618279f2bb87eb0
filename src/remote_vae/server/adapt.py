"""Wire messages -> jobs of the engine, within the server's limits; outcomes -> replies."""

import numpy as np

from remote_vae import values
from remote_vae.core.layout import MatchedLayout, fit_latent
from remote_vae.core.recipe import Affine
from remote_vae.core.vae_info import VAEInfo
from remote_vae.engine.job import DecodeJob, EncodeJob, Outcome
from remote_vae.engine.pool import Served
from remote_vae.errors import InvalidImage, InvalidValue, LatentMismatch, TooLarge, UnsupportedOutput
from remote_vae.media.images import read_image, write_image
from remote_vae.media.video import write_mp4
from remote_vae.protocol.frame import Buffer, TensorFrame
from remote_vae.protocol.messages import (
    DecodeOptions,
    DecodeRequest,
    EncodeOptions,
    EncodeRequest,
    Form,
    ModelInfo,
    OutputType,
    Posterior,
    Scaling,
    ScalingMode,
)
from remote_vae.server.settings import Settings
from remote_vae.values import Output, Tensor

MEDIA_FORMATS = {Form.JPG: "jpg", Form.PNG: "png", Form.WEBP: "webp"}


def model_info(model: Served, info: VAEInfo, settings: Settings) -> ModelInfo:
    """The card that GET /models shows."""
    return ModelInfo(
        name=model.name,
        aliases=model.aliases,
        recipe=model.recipe.name,
        kind=model.recipe.kind,
        latent_channels=info.latent_channels,
        spatial_compression_ratio=info.spatial_compression_ratio,
        temporal_compression_ratio=info.temporal_compression_ratio,
        latent_layouts=tuple(layout.wire for layout in model.recipe.layouts),
        scaling_factor=info.constants.scaling_factor,
        shift_factor=info.constants.shift_factor,
        latents_mean=info.constants.latents_mean,
        latents_std=info.constants.latents_std,
        posterior=model.recipe.posterior,
        dtype=info.dtype,
        plans=info.plans,
        executor=info.executor,
        source=info.source,
        revision=info.revision,
        limits={name: value for name, value in settings.model_dump().items() if name.startswith("max_")},
        config=info.config,
    )


def fit_decode(
    model: Served, info: VAEInfo, shape: tuple[int, ...], options: DecodeOptions, settings: Settings
) -> MatchedLayout:
    """The latent's layout, judged by its shape alone, so that a refusal can come before the body.

    *Raises* LatentMismatch, MalformedRequest, TooLarge, UnsupportedOutput, InvalidValue.
    """
    if len(shape) == 3:  # perhaps packed, and then these are the picture's sides
        _check_limits(settings, batch=1, frames=1, height=options.height or 1, width=options.width or 1)
    fit = fit_latent(model.recipe, info, shape, model=model.name, height=options.height, width=options.width)
    _check_limits(settings, batch=fit.batch, frames=fit.frames, height=fit.height, width=fit.width)
    _check_plan(options.plan, info, model)
    _check_factors(options.scaling, model)
    video = model.recipe.kind == "video"
    if options.output_type is OutputType.MP4 and not video:
        raise UnsupportedOutput(
            f"model {model.name!r} gives pictures; output_type=mp4 needs a video model", model=model.name
        )
    one_video = options.output_type is not OutputType.PT or options.partial_postprocess
    if video and one_video and fit.batch > 1:
        raise InvalidValue(
            f"the latent holds {fit.batch} videos; output_type={options.output_type.value} gives one, so send them "
            "one by one or take output_type=pt",
            batch=fit.batch,
        )
    return fit


def decode_job(model: Served, info: VAEInfo, request: DecodeRequest, settings: Settings) -> DecodeJob:
    """*Raises* what `fit_decode` raises, and TooLarge for a reply above the limit."""
    fit = fit_decode(model, info, request.latent.shape, request.options, settings)
    latent = Tensor(request.latent.dtype, request.latent.shape, request.latent.buffer)
    job = DecodeJob(_scaling(request.options.scaling), request.options.plan, latent, fit, _output(request))
    if job.reply_bytes > settings.max_reply_bytes and not request.form.is_image and request.form is not Form.MP4:
        raise TooLarge(
            f"the reply would have {job.reply_bytes} bytes; the limit is {settings.max_reply_bytes}; ask for pictures, "
            "for partial_postprocess=True, or for fewer at a time",
            limit=settings.max_reply_bytes,
        )
    return job


def _output(request: DecodeRequest) -> Output:
    """What the replica should make of the pixels, so that no more bytes than needed leave it."""
    if request.form is Form.MP4:
        return Output.UINT8
    if request.form.is_image:
        return Output.FIRST
    if request.options.output_type is OutputType.PIL:
        return Output.UNIT
    return Output.UINT8 if request.options.partial_postprocess else Output.RAW


def encode_job(model: Served, info: VAEInfo, request: EncodeRequest, settings: Settings) -> EncodeJob:
    """Reads the picture, so it belongs into a thread.

    *Raises* InvalidImage, UnsupportedMediaType, TooLarge, LatentMismatch, InvalidValue.
    """
    take = (request.options.posterior or Posterior(model.recipe.posterior)).value
    _check_encode(request.options, take, info, model)
    multiple = info.spatial_compression_ratio * model.recipe.patch
    if isinstance(request.image, TensorFrame):
        block, frames, height, width = _read_tensor(model, request.image)
    else:
        block = _read_picture(request.image, multiple, settings)
        frames, height, width = 1, block.shape[1], block.shape[2]
    _check_limits(settings, batch=block.shape[0], frames=frames, height=height, width=width)
    if min(height, width) < multiple:
        raise InvalidImage(
            f"the picture is {width}x{height} pixels; model {model.name!r} needs at least {multiple}x{multiple}",
            height=height,
            width=width,
        )
    ratio = info.spatial_compression_ratio
    latent_values = (
        block.shape[0] * info.latent_channels * info.latent_frames(frames) * (height // ratio) * (width // ratio)
    )
    scaling, plan, seed = _scaling(request.options.scaling), request.options.plan, request.options.seed
    pixels = block.shape[0] * frames * height * width
    return EncodeJob(scaling, plan, block, values.Posterior(take), seed, pixels, latent_values)


def _check_encode(options: EncodeOptions, take: str, info: VAEInfo, model: Served) -> None:
    _check_plan(options.plan, info, model)
    _check_factors(options.scaling, model)
    if take == Posterior.PARAMETERS and options.scaling.mode is not ScalingMode.NONE:
        raise InvalidValue(
            "posterior=parameters gives the mean and log-variance as they are; leave scaling_factor, shift_factor and "
            "do_scaling out and scale what you sample",
            name="posterior",
        )
    if take == Posterior.PARAMETERS and info.deterministic:
        raise InvalidValue(f"model {model.name!r} has no posterior; take posterior=mode", name="posterior")


def _read_picture(data: Buffer, multiple: int, settings: Settings) -> Tensor:
    pixels = read_image(data, multiple=multiple, max_pixels=settings.max_pixels, max_side=settings.max_side)
    return Tensor("uint8", (1, *pixels.shape), pixels.data.cast("B"))


def _read_tensor(model: Served, frame: TensorFrame) -> tuple[Tensor, int, int, int]:
    """The block with its batch axis, and its frames, height and width in pixels."""
    shape = frame.shape
    video = model.recipe.kind == "video"
    if len(shape) == 3 or (video and len(shape) == 4 and shape[0] == 3 and shape[1] != 3):
        shape = (1, *shape)
    block = Tensor(frame.dtype, shape, frame.buffer)
    if len(shape) == 4 and shape[1] == 3:
        return block, 1, shape[2], shape[3]
    if len(shape) == 4 and shape[3] == 3 and frame.dtype == "uint8":
        return block, 1, shape[1], shape[2]
    if video and len(shape) == 5 and shape[1] == 3 and frame.dtype != "uint8":
        return block, shape[2], shape[3], shape[4]
    layouts = "[B,3,H,W], [3,H,W], or uint8 [B,H,W,3]" + (", or floats [B,3,F,H,W]" if video else "")
    raise LatentMismatch(
        f"a tensor of shape {list(frame.shape)} is no picture for model {model.name!r}; expected {layouts}",
        shape=list(frame.shape),
    )


def _scaling(scaling: Scaling) -> values.Scaling:
    return values.Scaling(values.ScalingMode(scaling.mode), scaling.scaling_factor, scaling.shift_factor)


def _check_factors(scaling: Scaling, model: Served) -> None:
    if scaling.mode is ScalingMode.GIVEN and not any(isinstance(op, Affine) for op in model.recipe.ops):
        raise InvalidValue(
            f"the latents of model {model.name!r} are its decoder's own input, which is not scaled; leave "
            "scaling_factor and shift_factor out",
            name="scaling_factor",
        )


def _check_plan(plan: str | None, info: VAEInfo, model: Served) -> None:
    if plan is not None and plan not in info.plans:
        raise InvalidValue(
            f"plan={plan!r} is not one that model {model.name!r} has; expected one of {', '.join(info.plans)}",
            name="plan",
            allowed=list(info.plans),
        )


def _check_limits(settings: Settings, *, batch: int, frames: int, height: int, width: int) -> None:
    limits = (
        ("batch", batch, settings.max_batch),
        ("frames", frames, settings.max_frames),
        ("height", height, settings.max_side),
        ("width", width, settings.max_side),
        ("height x width", height * width, settings.max_pixels),
    )
    for name, value, limit in limits:
        if value > limit:
            raise TooLarge(f"{name} would be {value}; the limit here is {limit}", name=name, value=value, limit=limit)


def write_payload(outcome: Outcome, form: Form, quality: int) -> TensorFrame | bytes:
    """The reply's payload; writing pictures and video takes time, so it belongs into a thread."""
    block = outcome.tensor
    if form.is_tensor:
        return TensorFrame(block.dtype, block.shape, block.buffer)
    pixels = np.frombuffer(block.buffer, dtype=np.uint8).reshape(block.shape)
    if form is Form.MP4:
        return write_mp4(pixels)
    return write_image(pixels[0], image_format=MEDIA_FORMATS[form], quality=quality)
