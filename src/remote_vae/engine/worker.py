"""The replica's own process: loads one VAE, then answers jobs one at a time until its pipe closes."""

import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

from remote_vae.core.recipe import Recipe
from remote_vae.core.vae import VAE
from remote_vae.engine import malloc
from remote_vae.engine.memory import Budget
from remote_vae.engine.shared_memory import StopWord, Views
from remote_vae.engine.work import Bench
from remote_vae.errors import RemoteVAEError, to_json

IDLE_SECONDS: Final = 10.0  # after which shared memory that only a large job needed is let go

Message = dict[str, Any]
Loaded = tuple[VAE, Recipe]


def main(pipe: Connection, stop_word: str, loader: str, spec: Message) -> None:
    """The process's body. `loader` is `module:function`, called with the spec; it gives a VAE and its recipe."""
    malloc.keep_freed()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would keep what was sent
    for number in (signal.SIGINT, signal.SIGTERM):  # both may come to the whole group; the parent says when to stop
        signal.signal(number, signal.SIG_IGN)
    try:
        module, _, name = loader.partition(":")
        load: Callable[[Message], Loaded] = getattr(importlib.import_module(module), name)
        vae, recipe = load(spec)
        budget = Budget(vae.device, limit_bytes=spec.get("memory_budget"), weights_bytes=vae.info.weight_bytes)
        bench = Bench(vae, recipe, budget, Views(), StopWord(stop_word))
        bench.warm_up()
    except RemoteVAEError as exc:
        _send(pipe, {"error": to_json(exc)})
        return
    _send(pipe, {"facts": vae.info.to_json()})
    while True:
        _send(pipe, bench.work(_next(pipe, bench)))


def _next(pipe: Connection, bench: Bench) -> Message:
    try:
        while not pipe.poll(IDLE_SECONDS):
            bench.rest()
            malloc.give_back()
        message: Message = json.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)  # nothing is left to save, and taking torch down in good order takes a second of work
    return message


def _send(pipe: Connection, message: Message) -> None:
    try:
        pipe.send_bytes(json.dumps(message).encode())
    except OSError:
        sys.exit(0)  # the parent is gone, and nobody waits for this answer
