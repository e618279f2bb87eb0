"""Real server processes whose VAE copies, or misbehaves when asked to."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import requests

HERE = Path(__file__).parent
SHAPE = (1, 3, 8, 8)
QUERY = "shape=1,3,8,8&dtype=float32&output_type=pt"


def latent(first: float = 1.0) -> bytes:
    values = np.linspace(-1, 1, int(np.prod(SHAPE)), dtype=np.float32)
    values[0] = first
    return values.tobytes()


@dataclass(frozen=True)
class Server:
    """A server's address and process, and the file that its stdout and stderr go to."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def decode(self, first: float = 1.0, path: str = "/") -> requests.Response:
        return requests.post(
            f"{self.url}{path}?{QUERY}", latent(first), headers={"content-type": "tensor/binary"}, timeout=60
        )

    def replicas(self) -> list[int]:
        """The processes of the replicas, which are children that were spawned for work, in the order of their start."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        children = sorted(int(pid) for task in tasks for pid in task.read_text().split())
        return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def wait_until_live(self, *, ready: bool = True) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if requests.get(self.url + ("/ready" if ready else "/live"), timeout=5).status_code == 200:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.05)
        raise AssertionError("the server did not start")


Starter = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Starter:
    """Starts a server of `models`, with further settings by name; it has ended when the context ends."""

    @contextmanager
    def started(*models: str, ready: bool = True, **settings: object) -> Iterator[Server]:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        log = tmp_path_factory.mktemp("server") / "log"
        given = {"port": port, "models": ";".join(f"{name}=.,recipe=sd1" for name in models), **settings}
        environment = {**os.environ, **{f"REMOTE_VAE_{name.upper()}": str(value) for name, value in given.items()}}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, HERE / "misbehaving.py"], stdout=out, stderr=out, env=environment
            )
        server = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            server.wait_until_live(ready=ready)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            finally:
                process.kill()

    return started


@pytest.fixture(scope="session")
def copy(start: Starter) -> Iterator[Server]:
    """A server of two models that is shared by the tests that leave it as it was."""
    with start("copy", "flux1") as server:
        yield server
