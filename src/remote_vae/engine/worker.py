"""The replica's own process: loads one VAE, then answers jobs one at a time until its pipe closes."""

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import torch

from remote_vae.core.affine import Scaling
from remote_vae.core.decode import Decoded, Output, decode
from remote_vae.core.encode import Encoded, Take, encode
from remote_vae.core.execute import Terms
from remote_vae.core.layout import Fit
from remote_vae.core.recipe import Constants, Recipe
from remote_vae.core.vae import VAE
from remote_vae.engine.job import opened
from remote_vae.engine.memory import Budget
from remote_vae.errors import InternalError, RemoteVAEError, to_json

Message = dict[str, Any]
Loaded = tuple[VAE, Recipe]


def main(pipe: Connection, loader: str, spec: Message) -> None:
    """The process's body. `loader` is `module:function`, called with the spec; it gives a VAE and its recipe."""
    for number in (signal.SIGINT, signal.SIGTERM):  # both may come to the whole group; the parent says when to stop
        signal.signal(number, signal.SIG_IGN)
    try:
        module, _, name = loader.partition(":")
        load: Callable[[Message], Loaded] = getattr(importlib.import_module(module), name)
        vae, recipe = load(spec)
        budget = Budget(vae.device, limit_bytes=spec.get("memory_budget"), weights_bytes=vae.facts.weight_bytes)
    except RemoteVAEError as exc:
        _send(pipe, {"error": to_json(exc)})
        return
    _send(pipe, {"facts": vae.facts.to_json()})
    segments = Segments()
    while True:
        try:
            message = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)  # nothing is left to save, and taking torch down in good order takes a second of work
        _send(pipe, _answer(vae, recipe, message, segments, budget))


def _send(pipe: Connection, message: Message) -> None:
    try:
        pipe.send_bytes(json.dumps(message).encode())
    except OSError:
        sys.exit(0)  # the parent is gone, and nobody waits for this answer


class Segments:
    """Shared memory of the parent's, by name; the parent owns and frees it."""

    def __init__(self) -> None:
        self._open: dict[str, SharedMemory] = {}

    def view(self, role: str, name: str) -> memoryview:
        known = self._open.get(role)
        if known is None or known.name != name:
            if known is not None:
                known.close()
            known = self._open[role] = SharedMemory(name)
        return opened(known)


def _answer(vae: VAE, recipe: Recipe, message: Message, segments: Segments, budget: Budget) -> Message:
    started = time.perf_counter()
    try:
        tensor, done = _run(vae, recipe, message, segments, budget)
        blob = tensor.contiguous().view(torch.uint8).reshape(-1)
        out = segments.view("out", message["out"])
        out[: blob.numel()] = blob.numpy().data  # by one thread: more would wait for each other longer than they copy
    except RemoteVAEError as exc:
        return {"error": to_json(exc)}
    except torch.OutOfMemoryError:
        return {"error": to_json(InternalError("the device ran out of memory; send a smaller picture"))}
    except Exception as exc:  # noqa: BLE001  # boundary: whatever a model's code raises becomes one answer
        print(f"remote-vae replica {os.getpid()}: {type(exc).__name__} while running a job", file=sys.stderr)
        return {"error": to_json(InternalError("the VAE failed on this request"))}
    return {
        "dtype": _name(tensor.dtype),
        "shape": list(tensor.shape),
        "nbytes": blob.numel(),
        "plan": done.plan,
        "dtype_run": _name(done.dtype),
        "note": done.note,
        "seconds": time.perf_counter() - started,
    }


def _run(
    vae: VAE, recipe: Recipe, message: Message, segments: Segments, budget: Budget
) -> tuple[torch.Tensor, Decoded | Encoded]:
    data = segments.view("in", message["in"])
    dtype: torch.dtype = getattr(torch, message["dtype"])
    count = int(torch.Size(message["shape"]).numel())
    tensor = torch.frombuffer(data, dtype=dtype, count=count).reshape(message["shape"])
    given = _constants(message["given"])
    scaling = Scaling(own=message["own_scaling"], given=given)
    terms = Terms(message["plan"], budget.bytes_now())
    if message["op"] == "decode":
        fit, output = Fit(**message["fit"]), Output(message["output"])
        decoded = decode(vae, recipe, tensor, fit=fit, scaling=scaling, output=output, terms=terms)
        return _travelling(decoded.pixels, of_bfloat16=torch.float16), decoded
    take = Take(message["take"])
    encoded = encode(vae, recipe, tensor, scaling=scaling, take=take, seed=message["seed"], terms=terms)
    return _travelling(encoded.latent, of_bfloat16=torch.float32), encoded


def _travelling(tensor: torch.Tensor, *, of_bfloat16: torch.dtype) -> torch.Tensor:
    """bfloat16 is never sent, since one client misreads it; pixels fit float16, latents keep their range."""
    return tensor.to(of_bfloat16) if tensor.dtype is torch.bfloat16 else tensor


def _constants(found: Message | None) -> Constants | None:
    return Constants(found["scaling_factor"], found["shift_factor"]) if found else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
