"""One VAE on one device in its own process, seen from the server."""

import asyncio
import json
import logging
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Final, ParamSpec, TypeVar

import psutil

from remote_vae.core.vae_info import VAEInfo
from remote_vae.engine import malloc
from remote_vae.engine.ledger import Ledger
from remote_vae.engine.place import Place
from remote_vae.engine.shared_memory import Segments, Signals
from remote_vae.errors import ReplicaFailed, from_json

LOG: Final = logging.getLogger("remote_vae.engine")
STOP_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 10.0  # after which memory that only a large job needed is given back

T = TypeVar("T")
P = ParamSpec("P")


class ReplicaLost(Exception):
    """The process ended during a job; never leaves the engine."""


class Replica:
    """Starts the process and passes messages to it. Its pool calls one method after the other.

    The event loop itself talks with the process: messages are short, and a thread in between would wait for the
    interpreter longer than for the process. A thread starts and stops the process and copies large tensors. The process
    uses `cores` cores, unless OMP_NUM_THREADS is set. `on_lost` is called when the process dies, during a job or not.
    `entry` is the replica's place in the ledger.
    """

    def __init__(
        self,
        name: str,
        *,
        loader: str,
        spec: dict[str, object],
        cores: int,
        ledger: Ledger,
        entry: int,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.hung = False  # killed because it made no progress, and not started again yet
        self.closed = False
        self.place: Place | None = None  # once it has been loaded
        self.segments, self.signals = Segments(), Signals()
        self._loader, self._spec, self._cores, self._on_lost = loader, spec, cores, on_lost
        self._ledger, self._entry = ledger, entry
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"replica-{name}")
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None  # None while no process has loaded the model
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._device_bytes: int | None = None  # that the device's allocator held at the last answer; None for a CPU
        self._serial = 0
        self._shrinking: asyncio.TimerHandle | None = None

    @property
    def ready(self) -> bool:
        return self._pipe is not None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def memory_bytes(self) -> int:
        """The bytes that the process holds of its device's memory; of the machine's for a CPU."""
        if self._device_bytes is not None:
            return self._device_bytes
        try:
            return int(psutil.Process(self.pid).memory_info().rss) if self.pid else 0
        except psutil.Error:
            return 0

    @property
    def cpu_seconds(self) -> float:
        """The CPU time that the process has used; 0 if another device computes, for which a CPU may wait in a loop."""
        try:
            times = psutil.Process(self.pid).cpu_times() if self.pid and self._device_bytes is None else None
        except psutil.Error:
            times = None
        return times.user + times.system if times else 0.0

    async def load(self) -> VAEInfo:
        """Starts a process and waits until it has loaded the model; *raises* the loader's error."""
        self.hang_up()
        await self._in_thread(self._end, 0.0)
        self._ledger.clear(self._entry)
        pipe, info, self.place = await self._in_thread(
            self._load, self._ledger.name
        )  # made here: two threads would make two
        self._pipe, self.hung = pipe, False
        asyncio.get_running_loop().add_reader(pipe.fileno(), self._on_answer)
        return info

    def begin(self) -> int:
        """The serial number of a new job, which has the shared memory to itself until `finish`."""
        self._stop_shrinking()
        self._serial += 1
        return self._serial

    def finish(self) -> None:
        """The job is over; large segments are freed if no other job comes for a while."""
        self._stop_shrinking()
        if not self.closed:
            self._shrinking = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._shrink)

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The process's answer to a message, or a block of it. *Raises* ReplicaLost if the process ends."""
        self._answer = asyncio.get_running_loop().create_future()
        try:
            if self._pipe is None:
                raise ReplicaLost
            self._pipe.send_bytes(json.dumps(message).encode())
            told = await self._answer
        except OSError as exc:
            self.hang_up()
            raise ReplicaLost from exc
        finally:
            self._answer = None
        if not told.get("more"):
            self._device_bytes = told["device_bytes"]
        return told

    async def off_loop(self, large: bool, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls the function, in a thread if it would hold up the event loop."""
        return await self._in_thread(function, *args, **kwargs) if large else function(*args, **kwargs)

    def kill(self) -> None:
        """For a process that hangs."""
        self.hung = True
        if self._process is not None:
            self._process.kill()

    def give_up(self) -> None:
        """Waits neither for an answer nor for the end of loading; only `stop` can follow."""
        self.closed = True
        self.hang_up()

    async def stop(self) -> None:
        """Ends the process, by force if it does not go by itself, and frees the shared memory."""
        self.give_up()
        try:
            await self._in_thread(self._end, STOP_SECONDS)
            self._ledger.clear(self._entry)
        finally:
            self.free()

    def free(self) -> None:
        """Does at once and by force what `stop` does; a second call does nothing."""
        self.closed = True
        self._stop_shrinking()
        if self._process is not None:
            self._process.kill()
        self.segments.free()
        self.signals.free()
        self._thread.shutdown(wait=False)

    async def _in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(function, *args, **kwargs))

    def _load(self, ledger: str) -> tuple[Connection, VAEInfo, Place]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        try:
            with theirs:
                shared = {
                    "signals": self.signals.name,
                    "ledger": ledger,
                    "entry": self._entry,
                    "first": self.place is None,
                }
                process = context.Process(
                    target=_enter_child,
                    args=(theirs, shared, self._loader, self._spec, self._cores),
                    name=f"remote-vae-{self.name}",
                    daemon=True,
                )
                process.start()
                self._process = process  # only now can it be joined
            message = self._first_message(ours, process)
            if "error" in message:
                raise from_json(message["error"], status=0)
        except BaseException:
            ours.close()
            raise
        return ours, VAEInfo.from_json(message["info"]), Place.from_json(message["place"])

    def _first_message(self, pipe: Connection, process: SpawnProcess) -> dict[str, Any]:
        """*Raises* ReplicaFailed if the process ends before it has said anything."""
        try:
            while not pipe.poll(0.5):
                if self.closed:
                    process.kill()  # it does not look at its pipe before it has loaded
            message: dict[str, Any] = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            process.join(STOP_SECONDS)
            raise ReplicaFailed(f"the process of model {self.name!r} died while loading ({process.exitcode})") from None
        return message

    def _on_answer(self) -> None:
        """The event loop calls this when the pipe can be read: there is an answer, or the process has died."""
        try:
            message = json.loads(self._pipe.recv_bytes()) if self._pipe is not None else None
        except Exception as exc:  # boundary: after a broken read the next answer would be another job's
            if not isinstance(exc, EOFError | ConnectionError):
                LOG.error("a replica's answer could not be read", exc_info=exc, extra={"model": self.name})
            self.hang_up()
            self._on_lost()
            return
        if message is not None and message.get("rested"):
            self._device_bytes = message["device_bytes"]
        elif self._answer is not None and not self._answer.done() and message is not None:
            self._answer.set_result(message)

    def hang_up(self) -> None:
        """Closes the pipe, upon which the process ends, and tells the job that waits for an answer."""
        if self._pipe is not None:
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._pipe.close()
        self._pipe = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ReplicaLost())

    def _stop_shrinking(self) -> None:
        if self._shrinking is not None:
            self._shrinking.cancel()
        self._shrinking = None

    def _shrink(self) -> None:
        self.segments.shrink()
        self._thread.submit(malloc.give_back)  # the more memory was used, the longer it takes

    def _end(self, patience: float) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.join(patience)
            process.kill()
            process.join()
            process.close()


def _enter_child(pipe: Connection, shared: dict[str, Any], loader: str, spec: dict[str, object], cores: int) -> None:
    """Torch is imported here, in the child, and never in the server's own process."""
    # Between two regions OpenMP's threads would spin on cores that the server and the other replicas need, and wait for
    # a whole time slice for a thread that does not run. All variables are read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Apple's GPUs cannot do yet, the CPU does
    from remote_vae.engine.child import main

    main(pipe, shared, loader, spec)
