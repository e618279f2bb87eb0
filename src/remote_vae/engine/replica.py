"""One VAE on one device in one process of its own, seen from the server."""

import asyncio
import json
import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Final

from remote_vae.core.facts import Facts
from remote_vae.engine.job import Block, DecodeJob, EncodeJob, Outcome, opened, to_message
from remote_vae.errors import NotReady, RemoteVAEError, ReplicaFailed, from_json

SMALLEST_SEGMENT: Final = 1 << 20
STOP_SECONDS: Final = 5.0


class Replica:
    """Starts the process, passes jobs to it one at a time, and starts it again when it has died.

    The blocking talk with the process happens in a thread of its own, so the event loop only awaits.
    """

    def __init__(self, name: str, *, loader: str, spec: dict[str, object]) -> None:
        self.name = name
        self.facts: Facts | None = None
        self.failure: RemoteVAEError | None = None
        self._loader, self._spec = loader, spec
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"replica-{name}")
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._segments: dict[str, SharedMemory] = {}
        self._stopping = threading.Event()

    @property
    def ready(self) -> bool:
        return self.facts is not None and self._process is not None and self._process.is_alive()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> Facts:
        """Waits until the model is loaded; *raises* ModelLoadError or whatever else the loader said."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._start)

    async def run(self, job: DecodeJob | EncodeJob) -> Outcome:
        """*Raises* what the core raises, and ReplicaFailed when the process dies over it."""
        asked = time.perf_counter()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, job, asked)

    async def stop(self) -> None:
        """Ends the process, by force if it does not go by itself, and frees the shared memory."""
        self._stopping.set()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._stop)
        self._thread.shutdown(wait=False)

    def _start(self) -> Facts:
        if self.facts is not None and self.ready:
            return self.facts
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_enter_worker, args=(theirs, self._loader, self._spec), name=f"remote-vae-{self.name}", daemon=True
        )
        process.start()
        theirs.close()
        self._process, self._pipe = process, ours
        try:
            message = self._receive(ours)
        except (EOFError, OSError):
            process.join(STOP_SECONDS)
            self.failure = ReplicaFailed(f"the process of model {self.name!r} died while loading ({process.exitcode})")
            raise self.failure from None
        if "error" in message:
            self.failure = from_json(message["error"], status=0)
            raise self.failure
        self.facts, self.failure = Facts.from_json(message["facts"]), None
        return self.facts

    def _receive(self, pipe: Connection) -> dict[str, Any]:
        while not pipe.poll(0.5):
            if self._stopping.is_set():
                raise EOFError
        message: dict[str, Any] = json.loads(pipe.recv_bytes())
        return message

    def _run(self, job: DecodeJob | EncodeJob, asked: float) -> Outcome:
        if self._stopping.is_set():
            raise NotReady(f"the server is shutting down; model {self.name!r} takes no more work")
        if not self.ready:
            self._start()  # it has died while nobody was looking
        started = time.perf_counter()
        block = job.latent if isinstance(job, DecodeJob) else job.image
        data, out = memoryview(block.buffer).cast("B"), self._segment("out", job.reply_bytes)
        entry = self._segment("in", data.nbytes)
        opened(entry)[: data.nbytes] = data
        message = {**to_message(job), "in": entry.name, "out": out.name}
        try:
            if self._pipe is None:
                raise EOFError
            self._pipe.send_bytes(json.dumps(message).encode())
            answer = self._receive(self._pipe)
        except (EOFError, OSError) as exc:
            self._bury()
            raise ReplicaFailed(f"the process of model {self.name!r} died over this request; try again") from exc
        if "error" in answer:
            raise from_json(answer["error"], status=0)
        seconds = {"queue": started - asked, job_name(job): float(answer["seconds"])}
        found = Block(answer["dtype"], tuple(answer["shape"]), bytes(opened(out)[: answer["nbytes"]]))
        return Outcome(found, answer["plan"], answer["dtype_run"], answer["note"], seconds)

    def _segment(self, role: str, nbytes: int) -> SharedMemory:
        """Shared memory that is large enough; it is kept for the next job and grows by doubling."""
        known = self._segments.get(role)
        if known is not None and known.size >= nbytes:
            return known
        size = max(SMALLEST_SEGMENT, nbytes, 2 * known.size if known else 0)
        if known is not None:
            known.close()
            known.unlink()
        fresh = self._segments[role] = SharedMemory(create=True, size=size)
        return fresh

    def _bury(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None

    def _stop(self) -> None:
        if self._pipe is not None:
            self._pipe.close()  # the worker ends when its pipe does
        if self._process is not None:
            self._process.join(STOP_SECONDS)
        self._pipe = None
        self._bury()
        for segment in self._segments.values():
            segment.close()
            segment.unlink()
        self._segments.clear()


def job_name(job: DecodeJob | EncodeJob) -> str:
    return "decode" if isinstance(job, DecodeJob) else "encode"


def _enter_worker(pipe: Connection, loader: str, spec: dict[str, object]) -> None:
    """Torch is imported here, in the child, and never in the server's own process."""
    from remote_vae.engine.worker import main

    main(pipe, loader, spec)
