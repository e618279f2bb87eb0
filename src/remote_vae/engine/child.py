"""The replica's own process: it loads one VAE, then answers jobs one at a time until its pipe closes."""

import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch

from remote_vae.core.decode import decode
from remote_vae.core.encode import encode
from remote_vae.core.executor import RunOptions, is_out_of_memory
from remote_vae.core.has_triton import has_triton
from remote_vae.core.layout import MatchedLayout, example_shape, fit_latent
from remote_vae.core.progress import Progress
from remote_vae.core.recipe import Recipe
from remote_vae.core.relay import Relay
from remote_vae.core.result import Result
from remote_vae.core.vae import VAE
from remote_vae.engine import malloc
from remote_vae.engine.device import DeviceQueue, is_broken
from remote_vae.engine.ledger import Entry
from remote_vae.engine.memory import Budget, give_back, held_bytes, place_of
from remote_vae.engine.reach import largest_sides
from remote_vae.engine.relay import Handover
from remote_vae.engine.shared_memory import Signals, Views
from remote_vae.errors import (
    DeadlineExceeded,
    InternalError,
    ModelLoadError,
    Overloaded,
    RemoteVAEError,
    to_json,
)
from remote_vae.values import Output, Posterior, Scaling, ScalingMode

BROKEN_DEVICE: Final = 70  # the exit code of a process whose device answers nothing but errors any more
FRAMES: Final = 8  # of an exception, in the log
WARM_SIDE: Final = 8  # of the first latent, in latent pixels
IDLE_SECONDS: Final = 10.0  # after which the process lets go of shared memory that only a large job needed

Message = dict[str, Any]
Loaded = tuple[VAE, Recipe]


def main(pipe: Connection, shared: Message, loader: str, spec: Message) -> None:
    """The process's body. `loader` is `module:function`; called with the spec, it returns a VAE and its recipe."""
    malloc.keep_freed()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would keep what was sent
    for number in (signal.SIGINT, signal.SIGTERM):  # both may come to the whole group; the parent says when to stop
        signal.signal(number, signal.SIG_IGN)
    try:
        module, _, name = loader.partition(":")
        load: Callable[[Message], Loaded] = getattr(importlib.import_module(module), name)
        vae, recipe = load(spec)
        budget = _budget(vae, shared, spec.get("memory_budget"))
        signals = Signals(shared["signals"])
        runner = JobRunner(vae, recipe, budget, signals, Handover(pipe, signals.beat))
        runner.warm_up()
    except RemoteVAEError as exc:
        _send(pipe, {"error": to_json(exc)})
        return
    except Exception as exc:  # boundary: the device is full, or broken, or torch has no kernels for it
        reason = f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}"
        _send(pipe, {"error": to_json(ModelLoadError(f"the model cannot be loaded: {reason}"))})
        raise
    place = place_of(vae.device)
    if shared["first"]:  # a process that takes the place of another tells nothing new
        place = replace(place, largest=largest_sides(vae, recipe, budget.bytes_now()))
    _send(pipe, {"info": vae.info.to_json(), "place": place.to_json()})
    while True:
        answer = runner.work(_next(pipe, runner))
        _send(pipe, answer)
        if answer.get("fatal"):
            os._exit(BROKEN_DEVICE)  # such an error sticks to the process: every later call would fail as well


def _budget(vae: VAE, shared: Message, limit: float | None) -> Budget:
    entry = Entry(shared["ledger"], shared["entry"], device=str(vae.device))
    return Budget(vae.device, limit=limit, weights_bytes=vae.info.weight_bytes, entry=entry)


def _next(pipe: Connection, runner: "JobRunner") -> Message:
    try:
        while not pipe.poll(IDLE_SECONDS):
            _rest(pipe, runner)
        message: Message = json.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)  # nothing is left to save, and taking torch down in good order takes a second of work
    return message


def _rest(pipe: Connection, runner: "JobRunner") -> None:
    """Lets go of memory, and says what is left of the device's."""
    before, after = runner.rest()
    malloc.give_back()
    if after != before:
        _send(pipe, {"rested": True, "device_bytes": after})


def _send(pipe: Connection, message: Message) -> None:
    try:
        pipe.send_bytes(json.dumps(message).encode())
    except OSError:
        sys.exit(0)  # the parent is gone, and nobody waits for this answer


class JobRunner:
    """A loaded VAE and what it needs to run jobs."""

    def __init__(self, vae: VAE, recipe: Recipe, budget: Budget, signals: Signals, handover: Handover) -> None:
        self._vae, self._recipe, self._budget, self._signals = vae, recipe, budget, signals
        self._handover = handover
        self._views, self._queue = Views(), DeviceQueue(vae.device)
        self._serial, self._trim = 0, malloc.Trim()
        self._progress = Progress(signals.tell)

    def warm_up(self) -> None:
        """Decodes once, so that the first caller does not wait for libraries to be set up.

        If Triton compiles kernels for the device, every plan is tried both ways, because nothing is to be compiled
        while somebody waits. *Raises* ModelLoadError when the weights cannot even do that.
        """
        try:
            self._decode_zeros(None)
        except RemoteVAEError as exc:
            source = self._vae.info.source
            raise ModelLoadError(
                f"the weights of {source or 'this model'!r} do not decode a latent of zeros: {exc.message}",
                place=source,
            ) from exc
        if has_triton(self._vae.device):
            ways = ((self._decode_zeros, self._vae.decoders), (self._encode_zeros, self._vae.encoders))
            for work, executors in ways:
                for plan in dict.fromkeys(executor.name for executor in executors if executor.exact):
                    with suppress(Exception):  # boundary: a plan may not take an input that is so small
                        work(plan)

    def _decode_zeros(self, plan: str | None) -> None:
        info, options = self._vae.info, RunOptions(plan, self._budget.bytes_now)
        shape = example_shape(self._recipe, info, WARM_SIDE)
        fit = fit_latent(self._recipe, info, shape, model=info.source, height=None, width=None)
        scaling, output = Scaling(ScalingMode.MODEL), Output.UINT8
        decode(self._vae, self._recipe, torch.zeros(shape), fit=fit, scaling=scaling, output=output, options=options)

    def _encode_zeros(self, plan: str) -> None:
        info, options = self._vae.info, RunOptions(plan, self._budget.bytes_now)
        picture = torch.zeros(1, info.pixel_channels, *[WARM_SIDE * info.spatial_compression_ratio] * 2)
        scaling, posterior = Scaling(ScalingMode.MODEL), Posterior.MODE
        encode(self._vae, self._recipe, picture, scaling=scaling, posterior=posterior, options=options)

    def work(self, job: Message) -> Message:
        """The job's answer; its tensor is left in shared memory."""
        self._serial, self._trim = job["serial"], malloc.Trim()
        self._budget.begin()
        try:
            answer = self._answer(job)
            self._handover.wait()
            return {**answer, "device_bytes": held_bytes(self._vae.device)}
        finally:
            self._budget.end()

    def rest(self) -> tuple[int | None, int | None]:
        """Returns what was held of the device's memory before, and what is held now."""
        self._views.shrink()
        before = held_bytes(self._vae.device)
        give_back(self._vae.device)
        return before, held_bytes(self._vae.device)

    def _answer(self, job: Message) -> Message:
        started = time.perf_counter()
        try:
            tensor, done = self._run(job, self._input(job))
            return self._written(tensor, done, job, started)
        except RemoteVAEError as exc:
            refused = exc.with_traceback(None)
        except Exception as exc:  # noqa: BLE001  # boundary: whatever a model's code raises becomes one answer
            if not is_out_of_memory(exc):
                return _failure(exc, fatal=is_broken(self._vae.device))
            refused = Overloaded("the device ran out of memory; try again later")
        # Only now no traceback keeps the job's tensors, so that the budget sees the memory as it is without the job.
        return {"error": to_json(self._budget.judge(refused))}

    def _input(self, job: Message) -> torch.Tensor:
        data, dtype = self._views.view("in", job["in"]), getattr(torch, job["dtype"])
        count = int(torch.Size(job["shape"]).numel())
        return torch.frombuffer(data, dtype=dtype, count=count).reshape(job["shape"])

    def _written(self, tensor: torch.Tensor, done: Result, job: Message, started: float) -> Message:
        self._handover.wait()
        return self._answered(tensor, done, job, started)

    def _answered(self, tensor: torch.Tensor, done: Result, job: Message, started: float) -> Message:
        """Copies the output into shared memory; one thread does it, since several would only wait for each other."""
        blob = tensor.contiguous().view(torch.uint8).reshape(-1)
        self._views.view("out", job["out"])[: blob.numel()] = blob.numpy().data
        return {
            "dtype": _name(tensor.dtype),
            "shape": list(tensor.shape),
            "nbytes": blob.numel(),
            "plan": done.plan,
            "planned_bytes": done.peak_bytes,
            "dtype_run": _name(done.dtype),
            "note": done.note,
            "first": done.first,
            "seconds": time.perf_counter() - started,
        }

    def _relay(self, job: Message) -> Relay | None:
        """What takes the job's frames while it runs, if it is to hand them over."""
        if not job.get("block_bytes"):
            return None

        def give(frames: torch.Tensor) -> None:
            pixels = _travelling(frames.cpu(), of_bfloat16=torch.float16)
            block = Result(pixels, self._vae.dtype, relay.plan, first=relay.given)
            self._handover.give(lambda: self._answered(block.tensor, block, job, started))

        relay, started = Relay(give, job["block_bytes"], restarts=job["restarts"]), time.perf_counter()
        return relay

    def _run(self, job: Message, tensor: torch.Tensor) -> tuple[torch.Tensor, Result]:
        self._checkpoint()
        scaling = Scaling(**{**job["scaling"], "mode": ScalingMode(job["scaling"]["mode"])})
        arguments = job.get("arguments", {})
        budget, progress = self._budget, self._progress
        terms = RunOptions(
            job["plan"], budget.bytes_now, self._checkpoint, budget.reserve, arguments, progress, self._relay(job)
        )
        if job["op"] == "decode":
            fit, output = MatchedLayout(**job["fit"]), Output(job["output"])
            decoded = decode(self._vae, self._recipe, tensor, fit=fit, scaling=scaling, output=output, options=terms)
            return _travelling(decoded.tensor, of_bfloat16=torch.float16), decoded
        posterior, seed = Posterior(job["posterior"]), job["seed"]
        how: Message = {"scaling": scaling, "posterior": posterior, "seed": seed, "empty": job["empty"]}
        encoded = encode(self._vae, self._recipe, tensor, **how, options=terms)
        return _travelling(encoded.tensor, of_bfloat16=torch.float32), encoded

    def _checkpoint(self) -> None:
        """Called between blocks and layers: tells the server of the progress, and ends a job that nobody waits for."""
        self._queue.wait()
        self._signals.beat()
        self._progress.checkpoint()
        self._trim.when_due()
        self._budget.update()
        if self._signals.stopped(self._serial):
            raise DeadlineExceeded("nobody waits for this any more")


def _failure(error: Exception, *, fatal: bool) -> Message:
    """The answer to an exception of the model's code, for the client and for the log, without what it says."""
    frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
    return {
        "error": to_json(InternalError("the VAE failed on this request")),
        "exception": type(error).__name__,
        "frames": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames],
        "fatal": fatal or isinstance(error, torch.AcceleratorError),
    }


def _travelling(tensor: torch.Tensor, *, of_bfloat16: torch.dtype) -> torch.Tensor:
    """bfloat16 is never sent, since one client misreads it; pixels fit float16, latents keep their range."""
    return tensor.to(of_bfloat16) if tensor.dtype is torch.bfloat16 else tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
