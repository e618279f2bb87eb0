"""Wire messages -> jobs of the engine, within the server's limits."""

from remote_vae.core.layout import MatchedLayout, fit_latent
from remote_vae.core.recipe import Affine
from remote_vae.core.vae_info import VAEInfo
from remote_vae.engine.job import DecodeJob, EncodeJob
from remote_vae.engine.pool import Served
from remote_vae.errors import (
    InvalidImage,
    InvalidValue,
    LatentMismatch,
    MalformedRequest,
    TooLarge,
    UnsupportedOutput,
)
from remote_vae.media.images import ReadPicture
from remote_vae.media.video import check_video
from remote_vae.protocol.messages import DecodeRequest, EncodeRequest
from remote_vae.protocol.options import MODEL_ROWS, DecodeOptions
from remote_vae.server.payloads import video_terms
from remote_vae.server.readers import Terms
from remote_vae.server.settings import Settings
from remote_vae.server.videos import VIDEO_AXES, first_frames
from remote_vae.values import (
    RGB,
    RGBA,
    TRANSPARENT_FORMATS,
    VIDEO_FORMATS,
    Output,
    Posterior,
    Scaling,
    ScalingMode,
    Tensor,
)


def fit_decode(
    model: Served,
    info: VAEInfo,
    shape: tuple[int, ...],
    scaling: Scaling,
    options: DecodeOptions,
    settings: Settings,
) -> MatchedLayout:
    """The latent's layout, judged by its shape alone, so that a refusal can come before the body.

    *Raises* LatentMismatch, MalformedRequest, TooLarge, UnsupportedOutput, InvalidValue.
    """
    height, width = options["height"], options["width"]
    if len(shape) == 3:  # perhaps packed, and then these are the picture's sides
        _check_limits(settings, batch=1, frames=1, height=height or 1, width=width or 1)
    fit = fit_latent(model.recipe, info, shape, model=model.name, height=height, width=width)
    _check_limits(settings, batch=fit.batch, frames=fit.frames, height=fit.height, width=fit.width)
    _check_plan(options["plan"], info, model)
    _check_factors(scaling, model)
    _check_arguments(options, info, model)
    video = model.recipe.has_frames
    output_type = options["output_type"]
    if options["stream"] and not video:
        raise UnsupportedOutput(
            f"model {model.name!r} gives pictures; stream is for models of videos", model=model.name
        )
    if options["stream"] and options["image_format"]:
        raise InvalidValue("image_format is for pictures and stream for videos; leave one of them out", name="stream")
    if output_type in VIDEO_FORMATS and not video:
        raise UnsupportedOutput(
            f"model {model.name!r} gives pictures; output_type={output_type} needs a video model", model=model.name
        )
    one_video = output_type != "pt" or options["partial_postprocess"] or options["stream"]
    if video and one_video and fit.batch > 1:
        raise InvalidValue(
            f"the latent holds {fit.batch} videos; output_type={output_type} gives one, so send them "
            "one by one or take output_type=pt without stream",
            batch=fit.batch,
        )
    return fit


def decode_job(model: Served, info: VAEInfo, request: DecodeRequest, settings: Settings) -> DecodeJob:
    """*Raises* what `fit_decode` raises, UnsupportedOutput, and TooLarge for a reply above the limit."""
    options, scaling = request.options, request.scaling
    fit = fit_decode(model, info, request.latent.shape, scaling, options, settings)
    if info.transparent and not (request.format.is_tensor or request.format.alpha):
        raise UnsupportedOutput(
            f"the pictures of model {model.name!r} have transparency, which {request.format.name} does not hold; ask "
            f"for one of {', '.join(TRANSPARENT_FORMATS)}",
            model=model.name,
        )
    if request.format.is_video:
        check_video(request.format, video_terms(model, options, fit))
    given, output = _arguments(options), _output(request)
    plan, film = options["plan"], request.format.is_video and not options["stream"]
    job = DecodeJob(
        scaling, plan, request.latent, fit, output, given, info.pixel_channels,
        streamed=options["stream"] or film, restarts=film,
    )  # fmt: skip
    if job.reply_bytes > settings.max_reply_bytes and request.format.is_tensor:
        raise TooLarge(
            f"the reply would have {job.reply_bytes} bytes; the limit is {settings.max_reply_bytes}; ask for pictures, "
            "for partial_postprocess=True, or for fewer at a time",
            limit=settings.max_reply_bytes,
        )
    return job


def _output(request: DecodeRequest) -> Output:
    """What the replica should make of the pixels, so that no more bytes than needed leave it."""
    if request.format.is_image:
        return Output.FIRST
    if not request.format.is_tensor:
        return Output.UINT8
    if request.options["output_type"] == "pil":
        return Output.UNIT
    return Output.UINT8 if request.options["partial_postprocess"] else Output.RAW


def picture_terms(model: Served, info: VAEInfo, request: EncodeRequest, settings: Settings) -> Terms:
    """How to read the request's picture; *raises* what is wrong with the rest of the request."""
    _check_encode(request, info, model)
    return Terms(
        channels=info.pixel_channels,
        multiple=info.spatial_compression_ratio * model.recipe.patch,  # as the pipelines floor a picture
        max_pixels=settings.max_pixels,
        max_side=settings.max_side,
        use_profile=request.options["profile"] != "ignore",
    )


def encode_job(
    model: Served, info: VAEInfo, request: EncodeRequest, settings: Settings, picture: ReadPicture | None = None
) -> EncodeJob:
    """`picture` is the request's, read by `picture_terms`; None if the request has a tensor.

    *Raises* InvalidImage, TooLarge, LatentMismatch, InvalidValue.
    """
    posterior = _check_encode(request, info, model)
    multiple, note = info.spatial_compression_ratio * model.recipe.cells, ""
    if isinstance(request.image, Tensor):
        image, frames, height, width = _read_tensor(model, info.pixel_channels, request.image)
    elif picture is not None:
        multiple, note = info.spatial_compression_ratio * model.recipe.patch, picture.note
        image = Tensor("uint8", (1, *picture.pixels.shape), picture.pixels.data.cast("B"))
        frames, height, width = (1, *image.shape[1:-1])[-3:]
    else:
        raise TypeError("a request with a picture needs the picture that was read")
    image, frames, cut = first_frames(model, info, request, image, frames)
    empty = frames - 1 if len(image.shape) < VIDEO_AXES else 0
    note = "; ".join(filter(None, (note, cut)))
    _check_limits(settings, batch=image.shape[0], frames=frames, height=height, width=width)
    if empty:
        _check_bytes(settings, image.shape[0] * height * width * info.pixel_channels, frames)
    if min(height, width) < multiple:
        raise InvalidImage(
            f"the picture is {width}x{height} pixels; model {model.name!r} needs at least {multiple}x{multiple}",
            height=height,
            width=width,
        )
    _check_counts(model, info, frames=frames, height=height, width=width)
    ratio = info.spatial_compression_ratio
    batch, cells = image.shape[0], (height // ratio) * (width // ratio)
    return EncodeJob(
        request.scaling,
        request.options["plan"],
        image,
        posterior,
        request.options["seed"],
        pixels=batch * frames * height * width,
        latent_values=batch * info.latent_channels * model.recipe.copies * info.frames.latent(frames) * cells,
        note=note,
        empty=empty,
    )


def _check_bytes(settings: Settings, still: int, frames: int) -> None:
    """*Raises* TooLarge if a still makes more frames than a body could bring, before they take memory."""
    limit = settings.max_body_bytes
    if still * frames > limit:
        raise TooLarge(
            f"the pixels of {frames} frames like this would be {still * frames} bytes; the limit here is {limit}; send "
            "a smaller picture, or ask for fewer frames",
            value=still * frames,
            limit=limit,
        )


def _check_counts(model: Served, info: VAEInfo, *, frames: int, height: int, width: int) -> None:
    """*Raises* InvalidImage for a number of frames, or a side in pixels, that the encoder does not take."""
    ratio = info.spatial_compression_ratio
    for text, number, counts in (
        ("the video has {} frames", frames, info.frames.counts),
        ("the picture is {} pixels high", height - height % ratio, info.rows.times(ratio)),
        ("the picture is {} pixels wide", width - width % ratio, info.columns.times(ratio)),
    ):
        refusal = counts.refusal(number, model.name)
        if refusal:
            advice = ", or take frames=nearest" if counts is info.frames.counts and number > counts.least else ""
            raise InvalidImage(
                f"{text.format(number)}; {refusal}{advice}", frames=frames, height=height, width=width,
                nearest=list(counts.nearest(number)),
            )  # fmt: skip


def _check_encode(request: EncodeRequest, info: VAEInfo, model: Served) -> Posterior:
    posterior = Posterior(request.options["posterior"] or model.recipe.posterior)
    if not info.encodes:
        raise UnsupportedOutput(
            f"model {model.name!r} is a decoder without an encoder; encode with the model whose latents it takes",
            model=model.name,
        )
    _check_plan(request.options["plan"], info, model)
    _check_factors(request.scaling, model)
    if posterior is Posterior.PARAMETERS and request.scaling.mode is not ScalingMode.NONE:
        raise InvalidValue(
            "posterior=parameters gives the mean and log-variance as they are; leave scaling_factor, shift_factor and "
            "do_scaling out and scale what you sample",
            name="posterior",
        )
    if posterior is Posterior.PARAMETERS and info.deterministic:
        raise InvalidValue(f"model {model.name!r} has no posterior; take posterior=mode", name="posterior")
    return posterior


def _read_tensor(model: Served, channels: int, frame: Tensor) -> tuple[Tensor, int, int, int]:
    """The tensor with its batch axis, and its frames, height and width in pixels."""
    shape, video = frame.shape, model.recipe.has_frames
    last = frame.dtype == "uint8" and shape[-1] == channels  # no picture is so narrow
    unbatched = video and not last and len(shape) == 4 and shape[0] == channels and shape[1] != channels
    if len(shape) == 3 or unbatched:
        shape = (1, *shape)
    if len(shape) in ((4, 5) if video else (4,)) and channels == shape[-1 if last else 1]:
        frames, height, width = (1, *(shape[1:-1] if last else shape[2:]))[-3:]
        return Tensor(frame.dtype, shape, frame.buffer), frames, height, width
    layouts = "[B,{0},H,W], [{0},H,W], or uint8 [B,H,W,{0}]" + (
        "; of a video [B,{0},F,H,W], or uint8 [B,F,H,W,{0}]" if video else ""
    )
    advice = "; of an opaque picture alpha is 1 (255 in uint8)" if channels == RGBA and RGB in shape else ""
    raise LatentMismatch(
        f"a tensor of shape {list(frame.shape)} is no picture for model {model.name!r}; expected "
        f"{layouts.format(channels)}{advice}",
        shape=list(frame.shape),
    )


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


def _arguments(options: DecodeOptions) -> dict[str, object]:
    """What the request gives of the options that are for the decoder itself."""
    return {name: value for name, value in options.items() if name in MODEL_ROWS and value is not None}


def _check_arguments(options: DecodeOptions, info: VAEInfo, model: Served) -> None:
    for name, value in _arguments(options).items():
        if name not in info.takes:
            raise MalformedRequest(
                f"{name}={value} is for decoders that take it; that of model {model.name!r} takes "
                f"{', '.join(info.takes) or 'a latent only'}",
                name=name,
                allowed=list(info.takes),
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
