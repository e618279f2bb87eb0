"""One VAE on one device in one process of its own, seen from the server."""

import asyncio
import json
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Final, TypeVar

import psutil

from remote_vae.core.vae_info import VAEInfo
from remote_vae.engine import malloc
from remote_vae.engine.job import Job, Outcome, op_of, tensor_of, to_message
from remote_vae.engine.shared_memory import Segments, StopWord
from remote_vae.errors import RemoteVAEError, ReplicaFailed, from_json
from remote_vae.values import Tensor

LARGE_BYTES: Final = 4 << 20  # a copy of this many takes half a millisecond
STOP_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 10.0  # after which memory that only a large job needed is given back

T = TypeVar("T")
Answer = Outcome | RemoteVAEError


class ReplicaLost(Exception):
    """The process died over a job; never leaves the engine."""


class Replica:
    """Starts the process and passes jobs to it, one at a time; its owner calls one method after the other.

    The event loop itself talks with the process: questions and answers are short, and a thread in between would wait
    for the interpreter more than for the process. What takes long, starting and stopping, is done in a thread, and so
    is copying a large tensor. `cores` is how many the process uses, unless OMP_NUM_THREADS says so. `on_lost` is called
    when the process dies, over a job or not.
    """

    def __init__(
        self,
        name: str,
        *,
        loader: str,
        spec: dict[str, object],
        cores: int,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.hung = False  # killed by `kill`, and not loaded again yet
        self.device_bytes: int | None = None  # that the device's allocator held at the last answer, where it says
        self._loader, self._spec, self._cores, self._on_lost = loader, spec, cores, on_lost
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"replica-{name}")
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None  # None while there is no process that has loaded the model
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._segments, self._stop_word, self._serial = Segments(), StopWord(), 0
        self._shrinking: asyncio.TimerHandle | None = None
        self._stopping = threading.Event()

    @property
    def ready(self) -> bool:
        return self._pipe is not None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def memory_bytes(self) -> int:
        """What it holds of its device's memory, or of the machine's."""
        if self.device_bytes is not None:
            return self.device_bytes
        try:
            return int(psutil.Process(self.pid).memory_info().rss) if self.pid else 0
        except psutil.Error:
            return 0

    @property
    def segments(self) -> list[str]:
        """The names of its shared memory."""
        return [*self._segments.names, self._stop_word.name]

    async def load(self) -> VAEInfo:
        """Starts a process and waits until it has loaded the model; *raises* whatever the loader said."""
        self._hang_up()
        await self._in_thread(self._end, 0.0)
        pipe, info = await self._in_thread(self._load)
        self._pipe, self.hung = pipe, False
        asyncio.get_running_loop().add_reader(pipe.fileno(), self._on_answer)
        return info

    async def run(self, job: Job) -> Answer:
        """The job's outcome or error.

        *Raises* ReplicaLost when the process dies over it, Overloaded when there is no shared memory for it.
        """
        self._serial += 1  # first, since `abandon` may come while the tensor is copied
        block = memoryview(tensor_of(job).buffer).cast("B")
        name = await self._copy(block.nbytes, self._segments.fill, block)
        out = self._segments.room(job.reply_bytes)
        told = await self._ask({"serial": self._serial, "in": name, "out": out, **to_message(job)})
        self.device_bytes = told["device_bytes"]
        answer = await self._outcome(job, told)
        self._shrink_later()
        return answer

    def abandon(self) -> None:
        """Tells the process that nobody waits for its job any more; it answers at its next strip."""
        self._stop_word.say(self._serial)

    def kill(self) -> None:
        """For a process that hangs."""
        self.hung = True
        if self._process is not None:
            self._process.kill()

    def give_up(self) -> None:
        """Waits neither for an answer nor for loading to end; only `stop` can follow."""
        self._stopping.set()
        self._hang_up()

    async def stop(self) -> None:
        """Ends the process, by force if it does not go by itself, and frees the shared memory."""
        self.give_up()
        await self._in_thread(self._end, STOP_SECONDS)
        self.free()

    def free(self) -> None:
        """What `stop` does, at once and by force; a second time it does nothing."""
        self.kill()
        if self._shrinking is not None:
            self._shrinking.cancel()
        self._segments.free()
        self._stop_word.free()
        self._thread.shutdown(wait=False)

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _copy(self, nbytes: int, function: Callable[..., T], *arguments: object) -> T:
        """In a thread when it would hold the event loop for milliseconds."""
        return await self._in_thread(function, *arguments) if nbytes > LARGE_BYTES else function(*arguments)

    def _load(self) -> tuple[Connection, VAEInfo]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = self._process = context.Process(
            target=_enter_child,
            args=(theirs, self._stop_word.name, self._loader, self._spec, self._cores),
            name=f"remote-vae-{self.name}",
            daemon=True,
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
        return ours, VAEInfo.from_json(message["info"])

    async def _outcome(self, job: Job, told: dict[str, Any]) -> Answer:
        if "error" in told:
            return from_json(told["error"], status=0)
        found = await self._copy(told["nbytes"], self._segments.read, told["nbytes"])
        return Outcome(
            Tensor(told["dtype"], tuple(told["shape"]), found),
            told["plan"],
            told["dtype_run"],
            told["note"],
            {op_of(job): float(told["seconds"])},
            told["planned_bytes"],
        )

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self._answer = asyncio.get_running_loop().create_future()
        try:
            if self._pipe is None:
                raise EOFError
            self._pipe.send_bytes(json.dumps(message).encode())
            return await self._answer
        except (EOFError, OSError) as exc:
            self._hang_up()
            raise ReplicaLost from exc
        finally:
            self._answer = None

    def _on_answer(self) -> None:
        """The event loop calls this when the pipe can be read: there is an answer, or the process has died."""
        try:
            message = json.loads(self._pipe.recv_bytes()) if self._pipe is not None else None
        except (EOFError, OSError):
            self._hang_up()
            self._on_lost()
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

    def _shrink_later(self) -> None:
        if self._shrinking is not None:
            self._shrinking.cancel()
        self._shrinking = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._shrink)

    def _shrink(self) -> None:
        if self._answer is None:
            self._segments.shrink()
            malloc.give_back()

    def _end(self, patience: float) -> None:
        if self._process is not None:
            self._process.join(patience)
            self._process.kill()
            self._process.join()
            self._process.close()
        self._process = None


def _enter_child(pipe: Connection, stop_word: str, loader: str, spec: dict[str, object], cores: int) -> None:
    """Torch is imported here, in the child, and never in the server's own process."""
    # OpenMP's threads would spin between two regions, on cores that the server and the other replicas need: then one
    # waits for a whole time slice for another that does not run. Both are read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    from remote_vae.engine.child import main

    main(pipe, stop_word, loader, spec)
