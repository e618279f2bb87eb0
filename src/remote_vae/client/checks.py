"""Whether a tensor or picture can be the answer to what was asked; the wire itself has checked bytes against shape."""

from typing import Final

from remote_vae.errors import InvalidReply
from remote_vae.protocol.frame import TensorFrame
from remote_vae.protocol.messages import DecodeRequest, EncodeRequest, OutputType, Posterior

FLOATS: Final = ("float16", "float32")
LARGEST_RATIO: Final = 64  # pixels per latent cell and side, far above any VAE's


def check_picture_size(request: DecodeRequest, height: int, width: int) -> None:
    """*Raises* InvalidReply unless the sides are one whole multiple of the latent's, or those of a packed latent."""
    shape, options = request.latent.shape, request.options
    asked = "" if options.height is None else f" with height={options.height} and width={options.width}"
    if _may_be_packed(shape) and _is_floor(height, options.height) and _is_floor(width, options.width):
        return
    rows, columns = (1, *shape)[-2:]
    ratio = height // rows
    if 1 <= ratio <= LARGEST_RATIO and (height, width) == (rows * ratio, columns * ratio):
        return
    raise InvalidReply(
        f"the reply is {width}x{height} pixels, which cannot come of a latent of shape {list(shape)}{asked}",
        height=height,
        width=width,
        latent_shape=list(shape),
    )


def _may_be_packed(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 or (len(shape) == 4 and shape[0] == 1)


def _is_floor(side: int, asked: int | None) -> bool:
    """Whether a side is what was asked for, floored to whole cells of a latent, as packing does."""
    return asked is not None and 0 <= asked - side < LARGEST_RATIO


def check_decoded(request: DecodeRequest, frame: TensorFrame) -> None:
    """*Raises* InvalidReply unless type, axes, channels, batch and sides go with the request.

    *Shapes*: pt [B,3,H,W] or [B,3,F,H,W]; pil [B,3,H,W] or [F,3,H,W]; partial_postprocess [B,H,W,3] or [F,H,W,3].
    """
    options, shape = request.options, frame.shape
    raw = options.output_type is OutputType.PT
    if raw and options.partial_postprocess:
        _expect(frame, ("uint8",), ranks=(4,), channel_axis=-1)
        sides, video = shape[1:3], False
    elif raw:
        _expect(frame, FLOATS, ranks=(4, 5), channel_axis=1)
        sides, video = shape[-2:], len(shape) == 5
    else:
        _expect(frame, FLOATS, ranks=(4,), channel_axis=1)
        sides, video = shape[-2:], False
    check_picture_size(request, *sides)
    if shape[0] not in _batches(request, raw=raw and not options.partial_postprocess, video=video, first=shape[0]):
        raise InvalidReply(
            f"the reply has shape {list(shape)}, which does not have as many pictures as the latent of shape "
            f"{list(request.latent.shape)}",
            shape=list(shape),
            latent_shape=list(request.latent.shape),
        )


def _batches(request: DecodeRequest, *, raw: bool, video: bool, first: int) -> tuple[int, ...]:
    """What the first axis of the reply may be; frames stand there for videos that are not raw, in any number."""
    shape = request.latent.shape
    if len(shape) >= 5:
        return (shape[0],) if raw else (first,)
    if len(shape) == 4:
        extra_axis = (shape[1],) if shape[0] == 1 and request.options.height is not None else ()
        # Four axes may also be one video whose batch axis was left out: [c,f,h,w], of at least four channels.
        unbatched = (1,) if raw and video else (first,) if not raw and shape[0] >= 4 and first >= shape[1] else ()
        return (shape[0], *extra_axis, *unbatched)
    return (1, shape[0])


def check_encoded(request: EncodeRequest, frame: TensorFrame) -> None:
    """*Raises* InvalidReply unless type, axes and batch go with the request.

    *Shapes*: [B,C,h,w] or [B,C,f,h,w], with twice the channels for posterior=parameters.
    """
    _expect(frame, FLOATS, ranks=(4, 5), channel_axis=None)
    shape = frame.shape
    image = request.image
    batches: tuple[int, ...] = (1,)
    if isinstance(image, TensorFrame) and len(image.shape) > 3:
        batches = (image.shape[0],) if image.shape[0] != 3 else (3, 1)
    if shape[0] not in batches:
        raise InvalidReply(
            f"the reply has {shape[0]} latents where {batches[0]} were asked for", shape=list(shape), batch=batches[0]
        )
    if request.options.posterior is Posterior.PARAMETERS and shape[1] % 2:
        raise InvalidReply(f"the reply has {shape[1]} channels; mean and log-variance have an even number together")


def _expect(frame: TensorFrame, dtypes: tuple[str, ...], *, ranks: tuple[int, ...], channel_axis: int | None) -> None:
    if frame.dtype not in dtypes:
        raise InvalidReply(f"the reply's tensor is {frame.dtype}; expected {' or '.join(dtypes)}", dtype=frame.dtype)
    if len(frame.shape) not in ranks or (channel_axis is not None and frame.shape[channel_axis] != 3):
        axes = " or ".join(str(rank) for rank in ranks)
        colours = "" if channel_axis is None else ", three of them colours"
        raise InvalidReply(f"the reply's tensor has shape {list(frame.shape)}; expected {axes} axes{colours}")
