"""Videos that are written while they are decoded: into a reply that is sent meanwhile, or into a whole file."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import ExitStack, aclosing
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from remote_vae.engine.job import Outcome
from remote_vae.errors import RemoteVAEError
from remote_vae.media.terms import VideoTerms
from remote_vae.media.video import open_video
from remote_vae.protocol.messages import Provenance
from remote_vae.protocol.multipart import PartsWriter
from remote_vae.protocol.replies import Headers, provenance_headers
from remote_vae.server.body import while_wanted
from remote_vae.server.jobs import Job
from remote_vae.server.record import Record
from remote_vae.server.threads import Threads, Work
from remote_vae.server.tracked_response import SLICE_BYTES
from remote_vae.values import Buffer, Format

Source = AsyncGenerator[Outcome, None]
"""The blocks of a streamed job."""
Body = AsyncGenerator[Buffer, None]
WHOLE_ONLY: Final = "remote_vae.whole_only"  # in the scope of a request whose client could not stop a stream
# nginx would keep the first frames until it has more of them.
UNBUFFERED: Final[Headers] = [("x-accel-buffering", "no")]


class StreamedResponse(Response):
    """Sends a body as it is made; without its end if that fails, so that the client sees that it is not whole.

    The job ends if the client goes away; it waits if the client does not read. `on_sent` is called at the end.
    """

    def __init__(
        self, head: Headers, body: Body, source: Source, *, record: Record, on_sent: Callable[[], None]
    ) -> None:
        super().__init__(b"", 200)
        self._head, self._body, self._source = [*head, *UNBUFFERED], body, source
        self._record, self._on_sent = record, on_sent
        self._job, self._stack = Job(), ExitStack()

    def keep(self, job: Job, stack: ExitStack) -> None:
        """Takes the job of the reply, which can be cancelled; the stack is left when the reply is over."""
        self._job, self._stack = job, stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._stack:
                work = self._write(send)
                await while_wanted(work, cancelled=self._job.cancelled, request=Request(scope, receive))
        except RemoteVAEError as exc:
            self._record.error = exc.code  # the head says 200; the HTTP server closes a connection without the end
        finally:
            self._on_sent()

    async def _write(self, send: Send) -> None:
        async with aclosing(self._source), aclosing(self._body):
            head = [(name.encode(), value.encode()) for name, value in self._head]
            await send({"type": "http.response.start", "status": 200, "headers": head})
            async for piece in self._body:
                view = memoryview(piece).cast("B")
                for start in range(0, len(view), SLICE_BYTES):
                    part = view[start : start + SLICE_BYTES]
                    await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Frames:
    """The blocks of a streamed job, of which the first is there already."""

    def __init__(self, first: Outcome, rest: Source, record: Record) -> None:
        self.first, self._rest, self._record = first, rest, record

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        yield self.first
        async for block in self._rest:
            self._record.stages = block.seconds  # at last those of the job
            yield block


def parts(frames: Frames) -> tuple[Body, str]:
    """The frames as tensors, and the content type of the whole."""
    writer = PartsWriter()
    return _written(frames, writer), writer.content_type


async def _written(frames: Frames, writer: PartsWriter) -> Body:
    """Each block as a part. What should be known of the whole video stands at the last one."""
    try:
        async for block in frames:
            for piece in writer.tensor(block.tensor, provenance_headers(Provenance(note=block.note))):
                yield piece
    except RemoteVAEError as exc:
        for piece in writer.error(exc):
            yield piece
        raise
    yield writer.end()


async def film(frames: Frames, asked: Format, terms: VideoTerms, threads: Threads) -> Body:
    """A video's file; each block is written in a thread."""
    pipe = Pipe()
    writer = await threads.run(Work.FILM, open_video, pipe, asked, terms)  # type: ignore[arg-type]  # it only writes
    async for block in frames:
        await threads.run(Work.FILM, writer.add, _pixels(block))
        yield pipe.taken()
    await threads.run(Work.FILM, writer.end)
    yield pipe.taken()


def _pixels(block: Outcome) -> NDArray[np.uint8]:
    return np.frombuffer(block.tensor.buffer, np.uint8).reshape(block.tensor.shape)


async def whole_film(
    source: Source, asked: Format, terms: VideoTerms, threads: Threads
) -> tuple[Outcome, bytes, float]:
    """The last block, which tells of the job, a video's file, and the seconds that it took after the last block.

    If the frames come again from the first one, so does the file.
    """
    async with aclosing(source):
        async for block in source:
            came = time.perf_counter()
            if block.first == 0:
                out = BytesIO()
                writer = await threads.run(Work.FILM, open_video, out, asked, terms)
            await threads.run(Work.FILM, writer.add, _pixels(block))
    await threads.run(Work.FILM, writer.end)
    return block, out.getvalue(), time.perf_counter() - came


class Pipe:
    """A file that can only be written, and what has come since it was last taken."""

    def __init__(self) -> None:
        self._came: list[bytes] = []

    def write(self, data: Buffer) -> int:
        self._came.append(bytes(data))
        return len(self._came[-1])

    def flush(self) -> None:
        pass

    def taken(self) -> bytes:
        came, self._came = self._came, []
        return b"".join(came)
