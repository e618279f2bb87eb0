"""ComfyUI's progress bar and its Cancel, with stand-ins of the interfaces that ComfyUI has for them."""

import re
import sys
import threading
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import requests
import torch

from remote_vae.client import Client

from .running import execute, load

CANCEL_SECONDS = 1.0
THREAD = "remote-vae-call"


class InterruptProcessingException(Exception):
    """ComfyUI's own."""


class Comfy:
    """comfy.utils and comfy.model_management, as far as a node that waits needs them."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.bars: list[Any] = []
        self.threads = set[int]()
        comfy = self

        class ProgressBar:
            def __init__(self, total: int, node_id: str | None = None) -> None:
                self.total, self.values = total, list[int]()
                comfy.bars.append(self)

            def update_absolute(self, value: int, total: int | None = None, preview: object = None) -> None:
                comfy.threads.add(threading.get_ident())
                self.values.append(value)

        self.utils, self.management = ModuleType("comfy.utils"), ModuleType("comfy.model_management")
        self.utils.ProgressBar = ProgressBar  # type: ignore[attr-defined]
        self.management.throw_exception_if_processing_interrupted = self._throw  # type: ignore[attr-defined]

    def _throw(self) -> None:
        if self.cancelled.is_set():
            self.cancelled.clear()
            raise InterruptProcessingException

    def press_cancel(self, seconds: float) -> SimpleNamespace:
        """Cancels after so many seconds; the moment is the attribute `at` then."""
        moment = SimpleNamespace(at=0.0)

        def press() -> None:
            moment.at = time.monotonic()
            self.cancelled.set()

        threading.Timer(seconds, press).start()
        return moment


@pytest.fixture(scope="module")
def server(start: Any) -> Iterator[Any]:
    with start("copy", replicas=0) as found:
        yield found


@pytest.fixture(scope="module")
def comfy() -> Iterator[Comfy]:
    found, package = Comfy(), ModuleType("comfy")
    package.utils, package.model_management = found.utils, found.management  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for module in (package, found.utils, found.management):
            patch.setitem(sys.modules, module.__name__, module)
        yield found


@pytest.fixture(scope="module")
def module(comfy: Comfy) -> ModuleType:
    return load("custom_nodes_remote_vae_waiting")


def layers(first: float) -> dict[str, torch.Tensor]:
    """A LATENT for which the VAE takes ten layers of 0.2 s each, or forty for 12.0."""
    samples = torch.zeros(1, 3, 8, 8)
    samples[0, 0, 0, 0] = first
    return {"samples": samples}


def accepted(server: Any) -> float:
    text = requests.get(f"{server.url}/metrics", timeout=10).text
    found = re.search(r'remote_vae_accepted_jobs\{model="copy"\} (\S+)', text)
    assert found is not None
    return float(found[1])


def decode(module: ModuleType, url: str, first: float) -> Any:
    return execute(module, "RemoteVAEDecode", samples=layers(first), url=url, model="copy")


def test_the_bar_moves(module: ModuleType, comfy: Comfy, server: Any) -> None:
    """The node's bar shows how much of the job is done, from the node's own thread, which has ComfyUI's context."""
    decode(module, server.url, 11.0)  # of which the server knows the steps of the next one
    comfy.bars.clear()
    decode(module, server.url, 11.0)
    bar = max(comfy.bars, key=lambda each: len(each.values))
    assert len(set(bar.values)) > 4
    assert bar.values == sorted(bar.values)
    assert all(0 <= value <= bar.total for value in bar.values)
    assert comfy.threads == {threading.get_ident()}


@pytest.mark.parametrize("node", ["RemoteVAEDecode", "VAEDecode", "VAEEncode"])
def test_cancel(module: ModuleType, comfy: Comfy, server: Any, node: str) -> None:
    """Cancel ends a node of ours, or of ComfyUI with our VAE, within a second, and the server drops the job."""
    (vae,) = execute(module, "RemoteVAELoader", url=server.url, model="copy")
    pixels = torch.zeros(1, 8, 8, 3)
    with Client(server.url) as client:
        if node == "VAEEncode":  # an encode waits for its turn
            blocker = threading.Thread(target=client.decode, args=(layers(11.0)["samples"],))
            blocker.start()
            server.wait_until(lambda: accepted(server) == 1, seconds=10)
        work = {
            "RemoteVAEDecode": lambda: decode(module, server.url, 12.0),
            "VAEDecode": lambda: vae.decode(layers(12.0)["samples"]),
            "VAEEncode": lambda: vae.encode(pixels),
        }[node]
        pressed = comfy.press_cancel(0.8)
        with pytest.raises(InterruptProcessingException):
            work()
        took = time.monotonic() - pressed.at
        if node == "VAEEncode":
            blocker.join()
    assert took < CANCEL_SECONDS
    server.wait_until(lambda: accepted(server) == 0, seconds=2)
    server.wait_until(lambda: all(thread.name != THREAD for thread in threading.enumerate()), seconds=5)
    assert torch.equal(vae.decode(torch.zeros(1, 3, 8, 8)), torch.full((1, 8, 8, 3), 0.5))


def test_cancel_while_the_server_is_looked_for(module: ModuleType, comfy: Comfy, free_address: str) -> None:
    """Cancel ends a node whose server is not there, although the client would try for longer."""
    nodes = sys.modules[f"{module.__name__}.nodes"]
    pressed = comfy.press_cancel(0.3)
    with pytest.raises(InterruptProcessingException):
        nodes.open_model(free_address, "copy", "")
    assert time.monotonic() - pressed.at < CANCEL_SECONDS


def test_errors_come_out_as_they_are(module: ModuleType, comfy: Comfy, server: Any) -> None:
    """What the call raises in its thread is raised by the node."""
    waiting = sys.modules[f"{module.__name__}.waiting"]

    def work(tell: Any) -> None:
        raise TimeoutError("late")

    with pytest.raises(TimeoutError, match=r"^late$"):
        waiting.waited(work)


@pytest.fixture
def free_address() -> Iterator[str]:
    """Where somebody listens and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
