"""Kills a server and starts it again, 20 times, under everything that calls it: what is lost, wrong or comes twice.

The demo VAE at 64x64. `DecodeQueue`, `EncodeQueue`, `RemoteVAE` and the VAE of the ComfyUI nodes call it all the time,
each in a thread; their results are compared with those of the same inputs before the first restart. The server is
killed with SIGKILL when every caller has had a result from it, at a random moment of the next half second. Exits 1
unless every call gave its own result, once and in order.

    python benchmarks/restarts.py --json benchmarks/results/restarts.json
"""

import argparse
import importlib.util
import itertools
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from start import conditions, wait_until_ready

from remote_vae import DecodeQueue, EncodeQueue, RemoteVAE
from remote_vae.client.aio_queue import Item
from remote_vae.client.model import RemoteModel

COMMAND = (sys.executable, "-m", "remote_vae.cli.main", "serve", "--max-client-share", "1", "--port")
COMFYUI = Path(__file__).parent.parent / "integrations" / "comfyui"
INPUTS = 8
PATIENCE_SECONDS = 120.0


@dataclass
class Caller:
    """What one way of calling got: results that are right, and what is wrong with the others."""

    right: int = 0
    faults: list[str] = field(default_factory=list)

    def check(self, index: int, found: torch.Tensor, expected: list[torch.Tensor]) -> None:
        if torch.equal(found, expected[index % INPUTS]):
            self.right += 1
        else:
            self.faults.append(f"number {index} has another result")


class Server:
    """A server that can be killed, and started again at the same port."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.start()
        wait_until_ready(self.port, "/ready", self.process)

    def start(self) -> None:
        self.process = subprocess.Popen([*COMMAND, str(self.port)], stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def main() -> int:
    arguments = _arguments()
    server = Server()
    try:
        found, downtime = drill(server, arguments.restarts)
    finally:
        server.process.terminate()
        server.process.wait()
    report = {name: {"right": caller.right, "faults": caller.faults} for name, caller in found.items()}
    print(json.dumps(report, indent=1))
    if arguments.json is not None:
        document = {
            "conditions": conditions("httpx2"),
            "restarts": arguments.restarts,
            "downtime_s": downtime,
            **report,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if any(caller.faults for caller in found.values()) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


def drill(server: Server, restarts: int) -> tuple[dict[str, Caller], float]:
    """What each caller got, and the seconds without a server."""
    url, over = f"http://127.0.0.1:{server.port}/demo", threading.Event()
    ways = _ways(url)
    found = {name: Caller() for name in ways}
    threads = [threading.Thread(target=_call, args=(way, found[name], over)) for name, way in ways.items()]
    for thread in threads:
        thread.start()
    downtime = 0.0
    try:
        for _ in range(restarts):
            _wait_for_all(found)
            time.sleep(random.random() / 2)
            server.kill()
            began = time.monotonic()
            server.start()
            wait_until_ready(server.port, "/ready", server.process)
            downtime += time.monotonic() - began
        _wait_for_all(found)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return found, downtime


def _wait_for_all(found: dict[str, Caller]) -> None:
    """Until each caller has had one more result, or has failed."""
    before = {name: caller.right for name, caller in found.items()}
    deadline = time.monotonic() + PATIENCE_SECONDS
    while any(caller.right == before[name] and not caller.faults for name, caller in found.items()):
        if time.monotonic() > deadline:
            late = [name for name, caller in found.items() if caller.right == before[name]]
            raise TimeoutError(f"no result for {PATIENCE_SECONDS:.0f} s: {', '.join(late)}")
        time.sleep(0.02)


Way = Callable[[Caller, threading.Event], None]


def _call(way: Way, caller: Caller, over: threading.Event) -> None:
    try:
        way(caller, over)
    except Exception as exc:  # noqa: BLE001  # boundary: whatever a caller gets instead of a result is reported
        caller.faults.append(f"{type(exc).__name__}: {exc}")


def _ways(url: str) -> dict[str, Way]:
    """Each way to call, with the results that it must give, which are fetched now."""
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(1, 16, 8, 8, generator=generator) for _ in range(INPUTS)]
    pictures = [torch.rand(1, 3, 64, 64, generator=generator) for _ in range(INPUTS)]
    vae, nodes = RemoteVAE(url), _comfyui(url)

    def decode(index: int) -> torch.Tensor:
        return vae.decode(latents[index % INPUTS], return_dict=False)[0]

    def both(index: int) -> torch.Tensor:
        """A node's picture, and every other time its latent."""
        if index % 2:
            return nodes.encode(pictures[index % INPUTS].movedim(1, -1))
        return nodes.decode(latents[index % INPUTS])

    return {
        "DecodeQueue": _queue(lambda: DecodeQueue(url, in_flight=3, output_type="pt"), latents),
        "EncodeQueue": _queue(lambda: EncodeQueue(url, in_flight=3, posterior="mode"), pictures),
        "RemoteVAE": _calls(decode),
        "ComfyUI": _calls(both),
    }


def _calls(call: Callable[[int], torch.Tensor]) -> Way:
    expected = [call(index) for index in range(INPUTS)]

    def way(caller: Caller, over: threading.Event) -> None:
        for index in itertools.count():
            if over.is_set():
                return
            caller.check(index, call(index), expected)

    return way


def _queue(open_queue: Callable[[], Any], inputs: list[torch.Tensor]) -> Way:
    with open_queue() as queue:
        expected = [torch.as_tensor(item.result()) for item in queue.map(iter(inputs))]

    def way(caller: Caller, over: threading.Event) -> None:
        put = 0

        def endless() -> Iterator[torch.Tensor]:
            nonlocal put
            while not over.is_set():
                put += 1
                yield inputs[(put - 1) % INPUTS]

        with open_queue() as queue:
            taken = 0
            for item in queue.map(endless()):
                _take(item, taken, caller, expected)
                taken += 1
        if taken != put:
            caller.faults.append(f"{put} were put and {taken} came back")

    return way


def _take(item: Item, index: int, caller: Caller, expected: list[torch.Tensor]) -> None:
    if item.index != index:
        caller.faults.append(f"number {item.index} came as number {index}")
    elif item.error is not None:
        caller.faults.append(f"number {index} failed: {item.error}")
    else:
        caller.check(index, torch.as_tensor(item.value), expected)


def _comfyui(url: str) -> Any:
    """The VAE that the nodes hand out, imported as ComfyUI imports a folder."""
    name = "custom_nodes_remote_vae"
    spec = importlib.util.spec_from_file_location(
        name, COMFYUI / "__init__.py", submodule_search_locations=[str(COMFYUI)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[f"{name}.vae"].RemoteComfyVAE(RemoteModel(url))


if __name__ == "__main__":
    sys.exit(main())
