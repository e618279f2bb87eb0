"""Reading a request's body: within the limit, within the time, into one buffer."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from remote_vae.errors import MalformedRequest, RequestTimeout, TooLarge
from remote_vae.server.settings import Settings


def check_length(request: Request, settings: Settings) -> int | None:
    """The announced length, judged before a byte of the body is read; *raises* TooLarge."""
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise MalformedRequest("content-length is not a number")
    length = int(text)
    if length > settings.max_body_bytes:
        raise _too_large(settings)
    return length


async def read_body(request: Request, settings: Settings) -> bytearray:
    """The whole body; *raises* TooLarge, RequestTimeout, MalformedRequest when the client goes away."""
    announced = check_length(request, settings)
    body = bytearray(announced or 0)
    filled = 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for chunk in request.stream():
                end = filled + len(chunk)
                if end > settings.max_body_bytes:
                    raise _too_large(settings)
                body[filled:end] = chunk
                filled = end
    except TimeoutError:
        raise RequestTimeout(
            f"the body did not arrive within {settings.body_seconds:.0f} s", seconds=settings.body_seconds
        ) from None
    except ClientDisconnect:
        raise MalformedRequest("the client went away before its body was complete") from None
    del body[filled:]
    return body


def _too_large(settings: Settings) -> TooLarge:
    return TooLarge(
        f"the body is over the limit of {settings.max_body_bytes} bytes; send fewer latents at a time",
        limit=settings.max_body_bytes,
    )
