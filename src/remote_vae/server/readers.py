"""Reads pictures and videos in processes, which hold no interpreter up but their own and can be ended.

They are ended by the limits on a body, at the request's deadline, or if its client goes.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Final, TypedDict

import numpy as np

from remote_vae.engine.container import available_cores
from remote_vae.errors import DeadlineExceeded, InvalidImage, NotReady, Overloaded, from_json
from remote_vae.media.frames import Cut
from remote_vae.media.images import ReadPicture
from remote_vae.protocol.bodies import read_json_body
from remote_vae.server.forks import Fork, ForkServer
from remote_vae.server.reading import NEEDS_TOO_MUCH, Message, read_exactly, read_head, write_all
from remote_vae.server.turns import Turns
from remote_vae.values import Buffer

LOG: Final = logging.getLogger("remote_vae.server")
QUICK_BYTES: Final = 4 << 20  # of a file
QUICK_PIXELS: Final = 1 << 20
CPU_SECONDS: Final = 4.0  # for 4096x4096 pixels; the slowest ordinary picture of this size takes about one
CPU_PIXELS: Final = 4096 * 4096
MEMORY_BYTES: Final = 64 << 20  # whatever the picture
BYTES_PER_PIXEL: Final = 48  # of memory: the pixels several times over
BYTES_PER_BYTE: Final = 6  # of memory: the file and parts of it
VIDEO_CPU_SECONDS: Final = 30.0  # 257 frames of 1920x1080 take about ten
VIDEO_MEMORY_BYTES: Final = 256 << 20  # the libraries', whatever the video
MOST_IDLE: Final = 2  # processes
NICENESS: Final = 15  # models and connections get the cores first, whatever strangers send
NO_PROCESS: Final = "the system can start no process to read the body now; try again later"
COMMAND: Final = (sys.executable, "-m", "remote_vae.server.reading")


class Terms(TypedDict):
    """How `read_image` should read a picture."""

    channels: int
    multiple: int
    max_pixels: int
    max_side: int
    use_profile: bool


class Reader:
    """A process that reads one body after the other. Its methods block."""

    def __init__(self, fork: Fork) -> None:
        self._fork = fork

    @property
    def alive(self) -> bool:
        return self._fork.alive

    def read(self, data: Buffer, head: Message) -> tuple[Message, memoryview]:
        """Its answer, and the bytes that belong to it. *Raises* what is wrong with the data, and Overloaded."""
        try:
            write_all(self._fork.pipe, head, memoryview(data).cast("B"))
            answer = read_head(self._fork.pipe)
            body = read_exactly(self._fork.pipe, answer["bytes"])
        except (EOFError, OSError, ValueError) as exc:
            code = self._fork.wait()
            self.end()
            if code is None:
                raise Overloaded(NO_PROCESS) from exc
            raise InvalidImage(NEEDS_TOO_MUCH.format("CPU time" if code == -signal.SIGXCPU else "memory")) from exc
        if "exception" in answer:
            LOG.error("a body could not be read", extra={name: answer[name] for name in ("exception", "frames")})
        if "error" in answer:
            raise from_json(answer["error"], status=0)
        return answer, body

    def kill(self) -> None:
        """Ends the process; `read` raises in its thread."""
        self._fork.kill()

    def end(self) -> None:
        """Ends the process and frees what it had."""
        self._fork.close()


class Readers:
    """The processes that read: two or more are for quick pictures, the same number for others, and for videos.

    The same number of threads reads JSON. So small pictures never wait for large ones or videos, and one client's
    bodies never for another's. A process starts when a body needs one.
    """

    def __init__(self, *, share: float, most_bytes: int) -> None:
        count = max(2, available_cores() // 2)
        self._quick, self._slow, self._videos, self._json = (Turns(count, share=share) for _ in range(4))
        self._threads = ThreadPoolExecutor(4 * count, "remote-vae-readers")
        self._held, self._most_bytes = 0, most_bytes  # of the bodies that are being read or wait for it
        self._forks = ForkServer(COMMAND, niceness=NICENESS)
        self._idle: list[Reader] = []
        self._closed = False

    async def picture(self, data: Buffer, terms: Terms, *, client: str | None, seconds: float) -> ReadPicture:
        """*Raises* what `read_image` and `_held_for` raise, and InvalidImage for a picture that takes too much."""
        async with self._held_for(data, seconds):
            if len(data) <= QUICK_BYTES:
                async with self._quick.turn(client):
                    answer, pixels = await self._read_picture(data, terms, min(QUICK_PIXELS, terms["max_pixels"]))
            if len(data) > QUICK_BYTES or "large" in answer:
                async with self._slow.turn(client):
                    answer, pixels = await self._read_picture(data, terms, terms["max_pixels"])
        return ReadPicture(np.frombuffer(pixels, np.uint8).reshape(answer["shape"]), answer["note"])

    async def video(self, data: Buffer, terms: Terms, cut: Cut, *, client: str | None, seconds: float) -> ReadPicture:
        """The frames. *Raises* what `read_video` and `_held_for` raise, and InvalidImage if they take too much."""
        async with self._held_for(data, seconds), self._videos.turn(client):
            answer, pixels = await self._read(data, {"terms": terms, "cut": asdict(cut)}, pixels=terms["max_pixels"])
        return ReadPicture(np.frombuffer(pixels, np.uint8).reshape(answer["shape"]), answer["note"])

    async def json(self, data: Buffer, *, client: str | None, seconds: float) -> tuple[Buffer, object | None]:
        """Inputs and parameters, read in a thread. *Raises* what `read_json_body` and `_held_for` raise."""
        async with self._held_for(data, seconds), self._json.turn(client):
            reading = asyncio.get_running_loop().run_in_executor(self._threads, read_json_body, data)
            try:
                return await asyncio.shield(reading)
            finally:
                await asyncio.wait([reading])  # no other body gets the turn of one that nobody waits for any more
                reading.exception()  # otherwise asyncio logs an error that nobody waits for any more
                del reading  # as in `_read`

    @asynccontextmanager
    async def _held_for(self, data: Buffer, seconds: float) -> AsyncIterator[None]:
        """*Raises* DeadlineExceeded, and Overloaded if these bodies take over `most_bytes`; a single one always may."""
        if self._held and self._held + len(data) > self._most_bytes:
            raise Overloaded(f"the bodies that are read now take {self._held} bytes; try again later")
        self._held += len(data)
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise DeadlineExceeded(f"the body was not read within {seconds:.1f} s") from None
        finally:
            self._held -= len(data)

    async def _read_picture(self, data: Buffer, terms: Terms, pixels: int) -> tuple[Message, memoryview]:
        return await self._read(data, {"terms": terms, "quick_pixels": pixels}, pixels=pixels)

    async def _read(self, data: Buffer, task: Message, *, pixels: int) -> tuple[Message, memoryview]:
        head = {
            **task,
            "bytes": len(data),
            "cpu_seconds": CPU_SECONDS * max(1.0, pixels / CPU_PIXELS),
            "memory_bytes": MEMORY_BYTES + BYTES_PER_PIXEL * pixels + BYTES_PER_BYTE * len(data),
        }
        if "cut" in task:
            head["cpu_seconds"] = VIDEO_CPU_SECONDS
            head["memory_bytes"] += VIDEO_MEMORY_BYTES + 2 * task["cut"]["most_bytes"]  # once more as they grow
        reader = self._reader()
        reading = self._threads.submit(reader.read, data, head)
        try:
            return await asyncio.wrap_future(reading)
        finally:
            if reading.done():
                self._put_back(reader)
            else:  # nobody waits for it any more
                reader.kill()
                reading.add_done_callback(lambda _: reader.end())  # in its thread, which outlives the event loop
            del reading  # otherwise an error's frames and it hold each other, and the body

    def _reader(self) -> Reader:
        """An idle process, or a new one. *Raises* Overloaded, and NotReady after `close`."""
        if self._closed:
            raise NotReady("the server is shutting down")
        while self._idle:
            if (reader := self._idle.pop()).alive:
                return reader
            reader.end()
        try:
            return Reader(self._forks.fork())
        except OSError as exc:
            raise Overloaded(NO_PROCESS) from exc

    def _put_back(self, reader: Reader) -> None:
        if reader.alive and len(self._idle) < MOST_IDLE and not self._closed:
            self._idle.append(reader)
        else:
            reader.end()

    def close(self) -> None:
        """Ends the processes."""
        self._closed = True
        while self._idle:
            self._idle.pop().end()
        self._forks.close()
        self._threads.shutdown(wait=False)
