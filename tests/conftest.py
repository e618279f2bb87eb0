"""What every test relies on."""

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import requests

from confined import read_only
from ports import free_port

if TYPE_CHECKING:
    import torch  # most tests do without it, and it takes seconds

# One thread here and in every process that a test starts: the convolution library picks its algorithm by the number of
# threads, and equal pixels are promised for equal arithmetic.
os.environ["OMP_NUM_THREADS"] = "1"
# Without a GPU, Triton's kernels are interpreted. It reads this when it is first imported, by whomever.
os.environ["TRITON_INTERPRET"] = "0" if Path("/dev/nvidiactl").exists() else "1"

# With TEST_ON=ray (`make raytest`) the servers of all tests run on Ray Serve: two replicas, so that the second request
# of a test is answered by another process than the first.
RAY_REPLICAS = 2 if os.environ.get("TEST_ON") == "ray" else 0

# With READ_ONLY=1 every server of the tests runs on a read-only file system.
PREFIX = read_only() if os.environ.get("READ_ONLY") else ()
if os.environ.get("READ_ONLY") and not PREFIX:
    raise RuntimeError("mount namespaces are forbidden here, so nothing can be run on a read-only file system")

TINY = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "sample_size": 64,
}


READY_SECONDS = 600  # for a server that lives to be ready, on a machine that is busy with other work

SHARED = ("numerics",)  # folders whose files share what takes long to set up


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a file stay together, in the order that they stand in, when several processes share the files."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(folder if folder in SHARED else f"{folder}/{item.path.name}"))


@dataclass(frozen=True)
class Live:
    """A server's address, its process, the very modules whose weights it serves, and the folder of each by name."""

    url: str
    process: subprocess.Popen[bytes]
    modules: "dict[str, torch.nn.Module]"
    folder: Path

    def post(self, path: str, **kwargs: object) -> requests.Response:
        return requests.post(self.url + path, timeout=60, **kwargs)  # type: ignore[arg-type]


def make_modules() -> "dict[str, torch.nn.Module]":
    import torch
    from diffusers import AutoencoderKL, AutoencoderKLHunyuanVideo

    torch.manual_seed(7)
    video_blocks = {
        "down_block_types": ("HunyuanVideoDownBlock3D",) * 4,
        "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
        "block_out_channels": (8, 8, 8, 8),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }
    return {
        "sd": AutoencoderKL(**TINY, latent_channels=4, scaling_factor=0.31).eval(),
        "flux": AutoencoderKL(
            **TINY, latent_channels=16, scaling_factor=0.41, shift_factor=0.17, use_quant_conv=False
        ).eval(),
        "video": AutoencoderKLHunyuanVideo(**video_blocks, latent_channels=16, scaling_factor=0.47).eval(),
    }


RECIPES = {"sd": "sd1", "flux": "flux1", "video": "hunyuanvideo"}


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A real server, as a user starts it, with three tiny models whose factors are neither 0 nor 1."""
    modules, folder = make_modules(), tmp_path_factory.mktemp("models")
    for name, module in modules.items():
        module.save_pretrained(folder / name)
    with served(folder) as (url, process):
        yield Live(url, process, modules, folder)


@pytest.fixture(scope="session")
def optimized(live: Live) -> Iterator[str]:
    """The address of a server of the same models whose interpreter leaves out asserts."""
    with served(live.folder, PYTHONOPTIMIZE="1") as (url, _):
        yield url


@contextmanager
def served(
    folder: Path, *, prefix: tuple[str, ...] = PREFIX, **environment: str
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`remote-vae serve` of the models in a folder; it must end well."""
    port = free_port()
    command = [*prefix, sys.executable, "-m", "remote_vae.cli.main", "serve", "--port", str(port)]
    for name, recipe in RECIPES.items():
        command += ["--model", f"{name}={folder / name},recipe={recipe}"]
    if RAY_REPLICAS:
        command += ["--ray", "--ray-replicas", str(RAY_REPLICAS)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url, process)
        yield url, process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == 0


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended while it was starting"
        try:
            if requests.get(url + "/ready", timeout=5).status_code == 200:
                return
        except (requests.ConnectionError, requests.Timeout):
            pass
        time.sleep(0.1)
    raise AssertionError("the server did not become ready")


HERE = Path(__file__).parent
COPIES = {"films": "hunyuanvideo"}  # recipes of models in misbehaving.py
COPY_QUERY = "shape=1,3,8,8&dtype=float32&output_type=pt"


@dataclass(frozen=True)
class Server:
    """A server whose VAE copies: its address, its process, and the file that its stdout and stderr go to."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    verify: Path | None = None  # the certificate of a server that has one

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def decode(self, first: float = 1.0, path: str = "/") -> requests.Response:
        """Sends a latent that comes back as it is; its first value can make the VAE misbehave."""
        body = struct.pack("192f", first, *(i / 192 for i in range(191)))
        headers = {"content-type": "tensor/binary"}
        return requests.post(f"{self.url}{path}?{COPY_QUERY}", body, headers=headers, timeout=60)

    def replicas(self) -> list[int]:
        """The processes of the replicas, which were spawned for work, in the order of their start."""
        found = sorted(_processes_below(self.process.pid))
        return [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def wait_until(self, true: Callable[[], bool], *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def wait_until_live(self, *, ready: bool = True) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                path, verify = "/ready" if ready else "/live", self.verify and str(self.verify)
                if requests.get(self.url + path, timeout=5, verify=verify).status_code == 200:
                    return
            except (requests.ConnectionError, requests.Timeout):
                pass
            time.sleep(0.05)
        raise AssertionError("the server did not start")


def _processes_below(parent: int) -> list[int]:
    """The children of a process and theirs; on Ray some processes lie between a server and its replicas."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    children = [int(pid) for task in tasks for pid in task.read_text().split()]
    return children + [pid for child in children for pid in _processes_below(child)]


Starter = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Starter:
    """Starts a server of `models`, with further settings by name; it has ended when the context ends.

    With `replicas` it runs on Ray Serve.
    """

    @contextmanager
    def started(
        *models: str,
        ready: bool = True,
        verify: Path | None = None,
        replicas: int = RAY_REPLICAS,
        prefix: tuple[str, ...] = PREFIX,
        **settings: object,
    ) -> Iterator[Server]:
        port = settings.pop("port", None) or free_port()
        log = tmp_path_factory.mktemp("server") / "log"
        given = {"port": port, "models": ";".join(f"{name}=.,recipe={COPIES.get(name, 'sd1')}" for name in models)}
        given |= settings
        environment = {**os.environ, **{f"REMOTE_VAE_{name.upper()}": str(value) for name, value in given.items()}}
        environment["TEST_RAY_REPLICAS"] = str(replicas)
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*prefix, sys.executable, HERE / "misbehaving.py"], stdout=out, stderr=out, env=environment
            )
        server = Server(f"{'https' if verify else 'http'}://127.0.0.1:{port}", process, log, verify)
        try:
            server.wait_until_live(ready=ready)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=90)
            finally:
                process.kill()

    return started
