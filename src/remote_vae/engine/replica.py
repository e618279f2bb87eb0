"""One VAE on one device in one process of its own, seen from the server."""

import asyncio
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Final, TypeVar

from remote_vae.core.facts import Facts
from remote_vae.engine.job import Block, DecodeJob, EncodeJob, Outcome, opened, to_message
from remote_vae.errors import NotReady, RemoteVAEError, ReplicaFailed, from_json

LARGE_BYTES: Final = 4 << 20  # a copy of this many takes half a millisecond
SMALLEST_SEGMENT: Final = 1 << 20
STOP_SECONDS: Final = 5.0

T = TypeVar("T")


class Replica:
    """Starts the process, passes jobs to it one at a time, and starts it again when it has died.

    The event loop itself talks with the process: questions and answers are short, and a thread in between would wait
    for the interpreter more than for the process. What takes long, starting and stopping, is done in a thread, and so
    is copying a large tensor.
    """

    def __init__(self, name: str, *, loader: str, spec: dict[str, object]) -> None:
        self.name = name
        self.facts: Facts | None = None
        self.failure: RemoteVAEError | None = None
        self._loader, self._spec = loader, spec
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"replica-{name}")
        self._turn = asyncio.Lock()  # held by the one who talks with the process
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None  # None while there is no process that has loaded the model
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._memory = Memory()
        self._stopping = threading.Event()

    @property
    def ready(self) -> bool:
        return self._pipe is not None and self._process is not None and self._process.is_alive()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> Facts:
        """Waits until the model is loaded; *raises* ModelLoadError or whatever else the loader said."""
        async with self._turn:
            return await self._start()

    async def run(self, job: DecodeJob | EncodeJob) -> Outcome:
        """*Raises* what the core raises, and ReplicaFailed when the process dies over it."""
        asked = time.perf_counter()
        await self._turn.acquire()  # a caller that goes away while it waits leaves no work behind
        # One that goes away later must not take the turn along: the process would answer the next one with this job.
        work = asyncio.ensure_future(self._run(job, asked))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to look at it
        return await asyncio.shield(work)

    async def stop(self) -> None:
        """Ends the process, by force if it does not go by itself, and frees the shared memory."""
        self._stopping.set()
        self._hang_up()
        async with self._turn:
            await self._in_thread(self._end, STOP_SECONDS)
            self._memory.free()
        self._thread.shutdown(wait=False)

    async def _start(self) -> Facts:
        if self.facts is not None and self.ready:
            return self.facts
        self._hang_up()
        await self._in_thread(self._end, 0.0)
        try:
            pipe, facts = await self._in_thread(self._load)
        except RemoteVAEError as exc:
            self.failure = exc
            raise
        self._pipe, self.facts, self.failure = pipe, facts, None
        asyncio.get_running_loop().add_reader(pipe.fileno(), self._on_answer)
        return facts

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _copy(self, nbytes: int, function: Callable[..., T], *arguments: object) -> T:
        """In a thread when it would hold the event loop for milliseconds."""
        return await self._in_thread(function, *arguments) if nbytes > LARGE_BYTES else function(*arguments)

    def _load(self) -> tuple[Connection, Facts]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = self._process = context.Process(
            target=_enter_worker, args=(theirs, self._loader, self._spec), name=f"remote-vae-{self.name}", daemon=True
        )
        process.start()
        theirs.close()
        try:
            while not ours.poll(0.5):
                if self._stopping.is_set():
                    raise EOFError
            message = json.loads(ours.recv_bytes())
        except (EOFError, OSError):
            ours.close()
            if self._stopping.is_set():
                process.kill()  # it does not look at its pipe before it has loaded
            process.join(STOP_SECONDS)
            raise ReplicaFailed(f"the process of model {self.name!r} died while loading ({process.exitcode})") from None
        if "error" in message:
            ours.close()
            raise from_json(message["error"], status=0)
        return ours, Facts.from_json(message["facts"])

    async def _run(self, job: DecodeJob | EncodeJob, asked: float) -> Outcome:
        """Holds the turn, and gives it up at the end."""
        try:
            return await self._talk(job, asked)
        finally:
            self._turn.release()

    async def _talk(self, job: DecodeJob | EncodeJob, asked: float) -> Outcome:
        block = job.latent if isinstance(job, DecodeJob) else job.image
        if self._stopping.is_set():
            raise NotReady(f"the server is shutting down; model {self.name!r} takes no more work")
        if not self.ready:
            await self._start()  # it has died while nobody was looking
        started = time.perf_counter()
        data = memoryview(block.buffer).cast("B")
        name = await self._copy(data.nbytes, self._memory.fill, data)
        answer = await self._ask({**to_message(job), "in": name, "out": self._memory.room(job.reply_bytes)})
        if "error" in answer:
            raise from_json(answer["error"], status=0)
        found = await self._copy(answer["nbytes"], self._memory.read, answer["nbytes"])
        seconds = {"queue": started - asked, job_name(job): float(answer["seconds"])}
        pixels = Block(answer["dtype"], tuple(answer["shape"]), found)
        return Outcome(pixels, answer["plan"], answer["dtype_run"], answer["note"], seconds)

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self._answer = asyncio.get_running_loop().create_future()
        try:
            if self._pipe is None:
                raise EOFError
            self._pipe.send_bytes(json.dumps(message).encode())
            return await self._answer
        except (EOFError, OSError) as exc:
            self._hang_up()
            raise ReplicaFailed(f"the process of model {self.name!r} died over this request; try again") from exc
        finally:
            self._answer = None

    def _on_answer(self) -> None:
        """The event loop calls this when the pipe can be read: there is an answer, or the process has died."""
        try:
            message = json.loads(self._pipe.recv_bytes()) if self._pipe is not None else None
        except (EOFError, OSError):
            self._hang_up()
            return
        if self._answer is not None and not self._answer.done() and message is not None:
            self._answer.set_result(message)

    def _hang_up(self) -> None:
        """Closes the pipe, upon which a process that lives ends, and tells the one who waits for an answer."""
        if self._pipe is not None:
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._pipe.close()
        self._pipe = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(EOFError())

    def _end(self, patience: float) -> None:
        if self._process is not None:
            self._process.join(patience)
            self._process.kill()
            self._process.join()
        self._process = None


class Memory:
    """Shared memory for one tensor on the way in and one on the way out; kept for the next job."""

    def __init__(self) -> None:
        self._segments: dict[str, SharedMemory] = {}

    @property
    def names(self) -> list[str]:
        return [segment.name for segment in self._segments.values()]

    def fill(self, data: memoryview) -> str:
        """Copies a tensor in; gives the segment's name."""
        segment = self._segment("in", data.nbytes)
        opened(segment)[: data.nbytes] = data
        return segment.name

    def room(self, nbytes: int) -> str:
        """The name of a segment that holds as many bytes, for the way out."""
        return self._segment("out", nbytes).name

    def read(self, nbytes: int) -> bytes:
        return bytes(opened(self._segments["out"])[:nbytes])

    def free(self) -> None:
        for segment in self._segments.values():
            segment.close()
            segment.unlink()
        self._segments.clear()

    def _segment(self, role: str, nbytes: int) -> SharedMemory:
        """Large enough; grows by doubling."""
        known = self._segments.get(role)
        if known is not None and known.size >= nbytes:
            return known
        size = max(SMALLEST_SEGMENT, nbytes, 2 * known.size if known else 0)
        if known is not None:
            known.close()
            known.unlink()
        fresh = self._segments[role] = SharedMemory(create=True, size=size)
        return fresh


def job_name(job: DecodeJob | EncodeJob) -> str:
    return "decode" if isinstance(job, DecodeJob) else "encode"


def _enter_worker(pipe: Connection, loader: str, spec: dict[str, object]) -> None:
    """Torch is imported here, in the child, and never in the server's own process."""
    # OpenMP's threads would spin between two regions, on cores that the server and the other replicas need: then one
    # waits for a whole time slice for another that does not run. It is read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from remote_vae.engine.worker import main

    main(pipe, loader, spec)
