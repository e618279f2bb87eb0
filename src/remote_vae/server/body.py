"""What comes from the client: the body, within the limit and the time, and the news that the client has gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from starlette.requests import Request

from remote_vae.errors import JobCancelled, MalformedRequest, Overloaded, RemoteVAEError, RequestTimeout, TooLarge
from remote_vae.protocol.digest import check_digest
from remote_vae.protocol.wire import Head
from remote_vae.server.settings import Settings
from remote_vae.server.threads import Threads, Work

T = TypeVar("T")

MOST_BYTES_OF_A_PIXEL: Final = 10  # of a picture's file: RGBA of 16 bits, with room for the rest


def check_length(request: Request, head: Head, settings: Settings) -> None:
    """Judges the announced length before a byte of the body is read.

    *Raises* TooLarge, WrongByteCount, MalformedRequest.
    """
    announced = _announced(request)
    limit = _limit(head, settings)
    if max(announced or 0, head.body_bytes or 0) > limit:
        raise _too_large(limit)
    if announced is not None:
        head.check_body(announced)


def _announced(request: Request) -> int | None:
    text = request.headers.get("content-length")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise MalformedRequest("content-length is not a number")
    return int(text)


class Bodies:
    """Reads bodies. Those that are arriving take up to `max_arriving_bytes` together; a single one always may."""

    def __init__(self, settings: Settings, threads: Threads) -> None:
        self._settings, self._threads = settings, threads
        self._held = 0

    async def read(self, request: Request, head: Head) -> bytearray:
        """The whole body; a body that is longer than the tensor that was promised is refused at once.

        *Raises* TooLarge, WrongByteCount, RequestTimeout, Overloaded if other bodies take the room, and
        MalformedRequest if the client goes away or the body is not the one that the announced digest is of.
        """
        body = bytearray()  # grows with what comes: an announced length costs the client nothing, so it gets no memory
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                more = True
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise MalformedRequest("the client went away before its body was complete", gone=True)
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    self._check(len(body), len(chunk), head)
                    body += chunk
                    self._held += len(chunk)
                    del message, chunk  # which would stay until the next one comes; `request.stream` keeps them too
        except TimeoutError:
            raise RequestTimeout(
                f"the body did not arrive within {self._settings.body_seconds:g} s", seconds=self._settings.body_seconds
            ) from None
        finally:
            self._held -= len(body)
        if digest := ",".join(request.headers.getlist("content-digest")):
            await self._threads.run(Work.READ, check_digest, digest, body)
        return body

    def _check(self, here: int, more: int, head: Head) -> None:
        limit = _limit(head, self._settings)
        if here + more > limit:
            raise _too_large(limit)
        if head.body_bytes is not None and here + more > head.body_bytes:
            head.check_body(here + more)
        if self._held > here and self._held + more > self._settings.max_arriving_bytes:
            raise Overloaded(
                f"the bodies that arrive now would take over {self._settings.max_arriving_bytes} bytes; try again later"
            )


async def while_wanted(work: Coroutine[Any, Any, T], *, cancelled: asyncio.Event, request: Request | None = None) -> T:
    """The result of `work`, which is cancelled when nobody would read the answer.

    *Raises* JobCancelled after the event, and MalformedRequest when the client of the request goes away. A result that
    is there already is returned in any case, because it can hold what its sender frees.
    """
    task = asyncio.ensure_future(work)
    ends: dict[asyncio.Future[Any], RemoteVAEError] = {asyncio.ensure_future(cancelled.wait()): _cancelled()}
    if request is not None:
        ends[asyncio.ensure_future(request.receive())] = _gone()  # after the body only this can come
    try:
        await asyncio.wait((task, *ends), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise next(error for end, error in ends.items() if end.done())
    finally:
        for each in (task, *ends):
            each.cancel()
        del task, ends, each  # otherwise an error's frames and its task hold each other, and the body


def _cancelled() -> RemoteVAEError:
    return JobCancelled("this request was cancelled by a DELETE of its job")


def _gone() -> RemoteVAEError:
    return MalformedRequest("the client went away before its answer was ready", gone=True)


def _limit(head: Head, settings: Settings) -> int:
    """Bytes of a body. A tensor's shape is known and judged; JSON and pictures are taken apart before that can be."""
    if head.body_bytes is not None:
        return settings.max_body_bytes
    return min(settings.max_body_bytes, MOST_BYTES_OF_A_PIXEL * settings.max_pixels)


def _too_large(limit: int) -> TooLarge:
    text = "send fewer at a time, pixels as uint8, or a video as a file"
    return TooLarge(f"the body is over the limit of {limit} bytes; {text}", limit=limit)
