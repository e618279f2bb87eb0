"""The application on Ray Serve, with a Ray of its own: what differs from a single machine, and what must not."""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from remote_vae import Client
from remote_vae.errors import DeadlineExceeded, RemoteVAEError
from remote_vae.protocol.multipart import PartsReader
from remote_vae.values import Tensor

pytestmark = pytest.mark.alone
HERE = Path(__file__).parent
SLEEP = 8.0  # the first value of a latent that makes the VAE take a second


@pytest.fixture(scope="module")
def two(start: Any) -> Iterator[Any]:
    """A server of two replicas in a Ray of its own."""
    with start("copy", "flux1", "films", replicas=2) as server:
        yield server


@pytest.fixture
def port() -> int:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def command(process: psutil.Process) -> str:
    """Of a process that has ended, nothing."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def processes(server: Any, name: str) -> list[psutil.Process]:
    """Of the server, those whose command line begins so."""
    found = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in found if command(child).startswith(name)]


def actors(server: Any) -> list[psutil.Process]:
    return [child for child in processes(server, "ray::ServeReplica") if ".initialize" not in command(child)]


def alive(children: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run; one whose parent died before it may wait as a zombie for somebody to ask."""
    return [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_replicas_that_do_not_fit_and_a_model_that_does_not_load(serve: Any) -> None:
    """Replicas that need more than the machine has, and a model that no replica can load, are said in one line each;
    no process and no file of that Ray is left."""
    before = {child.pid for child in psutil.process_iter()}, set(Path("/tmp").glob("rvae-*"))
    for arguments, text in (
        (["--ray-gpus", "1000"], "1 replicas of 1000 GPU each do not fit: this machine has"),
        (["--memory-budget", "1000"], "the memory budget is 0 MB; raise --memory-budget"),
    ):
        ended = serve("--port", "0", *arguments)
        assert ended.returncode == 1
        assert text in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    left = [child.name() for child in psutil.process_iter() if child.pid not in before[0] and "ray" in child.name()]
    assert (left, set(Path("/tmp").glob("rvae-*")) - before[1]) == ([], set())


def test_every_reply_has_one_id(two: Any) -> None:
    """A reply names its request once, and it is the caller's own id."""
    reply = requests.get(two.url + "/ready", headers={"x-request-id": "mine-7"}, timeout=30)
    assert reply.headers["x-request-id"] == "mine-7"


def test_what_is_no_http(two: Any) -> None:
    """What is no HTTP is refused before it reaches a replica, and others are served."""
    with socket.create_connection(("127.0.0.1", two.port), timeout=10) as connection:
        connection.sendall(b"NONSENSE\r\n\r\n")
        assert connection.makefile("rb").read().startswith(b"HTTP/1.1 400 ")
    assert two.decode().status_code == 200


def test_who_listens(two: Any) -> None:
    """The service's port is open on loopback alone when that is its host."""
    listening = [
        connection.laddr
        for process in psutil.Process(two.process.pid).children(recursive=True)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.ip for address in listening if address.port == two.port} == {"127.0.0.1"}


def test_both_replicas_work(two: Any) -> None:
    """Two requests that take a second each are answered in less than two, once the proxy knows both replicas."""
    seconds, deadline = 2.0, time.monotonic() + 30
    while seconds > 1.8 and time.monotonic() < deadline:
        asked = time.monotonic()
        threads = [threading.Thread(target=two.decode, args=(SLEEP,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - asked
    assert seconds < 1.8


def test_replicas_are_no_background_work(two: Any) -> None:
    """They have the priority that the service was started with; by Ray's default everything else would go first."""
    assert [actor.nice() for actor in actors(two)] == [psutil.Process(two.process.pid).nice()] * 2


def test_a_client_that_goes_away(two: Any) -> None:
    """Work whose client has gone while it waited is not done."""
    head = b"POST /?shape=1,3,8,8&dtype=float32&output_type=pt HTTP/1.1\r\nhost: a\r\n"
    head += b"content-type: tensor/binary\r\ncontent-length: 768\r\n\r\n"
    body = struct.pack("192f", SLEEP, *([0.0] * 191))
    connections = [socket.create_connection(("127.0.0.1", two.port)) for _ in range(24)]  # 12 s of work
    for connection in connections:
        connection.sendall(head + body)
    time.sleep(1)
    for connection in connections:
        connection.close()
    asked = time.monotonic()
    assert two.decode().status_code == 200
    assert time.monotonic() - asked < 6


def test_a_replica_that_is_killed(two: Any) -> None:
    """Of a replica that is killed only its own requests fail, as a broken connection or a 503; others are served."""
    outcomes: set[str] = set()
    tries = 0
    while len(outcomes) < 2:  # Ray may have sent the one that is killed no request
        outcomes = killed_under_load(two)
        tries += 1
        assert outcomes <= {"200", "503", "broken"}
        assert "200" in outcomes
        assert tries < 5
        for _ in range(10):
            assert two.decode().status_code == 200
        two.wait_until(lambda: len(actors(two)) == 2, seconds=120)


def killed_under_load(two: Any) -> set[str]:
    """What becomes of six requests while a replica is killed."""
    outcomes: list[str] = []

    def ask() -> None:
        try:
            outcomes.append(str(two.decode(SLEEP).status_code))
        except requests.ConnectionError:
            outcomes.append("broken")

    threads = [threading.Thread(target=ask) for _ in range(6)]  # some for each replica
    for thread in threads:
        thread.start()
    time.sleep(1)  # of the three that the work takes
    actors(two)[0].kill()
    for thread in threads:
        thread.join()
    return set(outcomes)


def film(frames: int, side: int, *, slow: int | None = None) -> np.ndarray:
    """A latent, from one frame of which on each takes the VAE a second. *Shapes*: [1,3,F,H,W]."""
    values = np.zeros((1, 3, frames, side, side), np.float16)
    if slow is not None:
        values[0, 0, slow:, 0, 0] = SLEEP
    return values


def read_to_the_end(reply: requests.Response, found: list[Tensor]) -> None:
    """Adds each frame that comes; *raises* what the stream ends with."""
    reader = PartsReader(reply.headers["content-type"], most_bytes=2**30)
    for chunk in reply.iter_content(2**20):
        found += reader.take(chunk)


def test_a_stream_that_nobody_reads(two: Any) -> None:
    """Its decode waits for the reader, others are served, and what is read after the deadline is not whole."""
    sent, found = film(12, 1024), list[Tensor]()  # 144 MiB of floats, of which a server takes some 60 ahead
    url = f"{two.url}/films?shape={','.join(map(str, sent.shape))}&dtype=float16&output_type=pt&stream=1"
    headers = {"content-type": "tensor/binary", "accept": "multipart/mixed", "x-request-timeout-seconds": "10"}
    with requests.post(url, sent.tobytes(), headers=headers, stream=True, timeout=60) as reply:
        assert reply.status_code == 200, reply.text
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            assert two.decode().status_code == 200
            time.sleep(0.5)
        with pytest.raises(DeadlineExceeded):
            read_to_the_end(reply, found)
    assert 0 < len(found) < 12


def test_a_stream_of_a_replica_that_is_killed(two: Any) -> None:
    """The frames before it have come at once, and then the client raises: they are not the whole video."""
    with Client(two.url) as client:
        blocks = client.decode_stream(film(60, 16, slow=2), model="films")
        found = [next(blocks)]
        for actor in actors(two):
            actor.kill()
        with pytest.raises(RemoteVAEError):
            found.extend(blocks)
    assert 0 < len(found) < 10
    two.wait_until(lambda: len(actors(two)) == 2, seconds=120)


def test_while_ray_starts(port: int) -> None:
    """The service's port is not among the free ones that Ray's processes take, and SIGTERM ends it all, with 0."""
    command = [sys.executable, "-m", "remote_vae.cli.main", "serve", "--ray", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        ends = time.monotonic() + 120
        while not any(child.name() == "raylet" for child in psutil.Process(process.pid).children()):
            assert time.monotonic() < ends
            time.sleep(0.1)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == (b"", b"")
        assert process.returncode == 0
        assert alive(children) == []
    finally:
        process.kill()


def test_chaos(tmp_path: Path) -> None:
    """While replicas, models and the proxy are killed, a DecodeQueue gets every answer, right and in its place."""
    benchmark, file = HERE.parent.parent / "benchmarks" / "ray_chaos.py", tmp_path / "chaos.json"
    command = [sys.executable, str(benchmark), "--seconds", "8", "--every", "2", "--json", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert file.exists(), ended.stderr
    found = json.loads(file.read_text())
    assert (found["wrong"], found["lost"], found["killed"]["proxy"]) == (0, 0, 1), found["what_was_lost"] or found
    assert found["answered"] > 0
    assert found["both_replicas_after_seconds"] < 120


def test_accepted_work_is_finished(start: Any) -> None:
    """Requests that were accepted before SIGTERM are answered, and the server ends with 0 and leaves nothing."""
    with start("copy", replicas=1) as server:
        replies: list[requests.Response] = []
        threads = [threading.Thread(target=lambda: replies.append(server.decode(SLEEP))) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(2)  # of the eight that the work takes
        children = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert [reply.status_code for reply in replies] == [200] * 8
        assert server.process.wait(timeout=90) == 0
        assert alive(children) == []


def test_a_new_version_under_load(port: int) -> None:
    """While the application is replaced every request is answered rightly, also those that take long."""
    command = [sys.executable, str(HERE / "rolling.py"), str(port)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(HERE.parent)])}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert (found.pop("limit"), found.pop("right") > 20) == (3, True)
    assert found == {}


def test_a_ray_that_goes_away(start: Any) -> None:
    """When Ray dies over a request, that request ends within seconds, and the server says why and ends with 1."""
    with start("copy", replicas=1) as server:
        outcomes: list[object] = []

        def ask() -> None:
            try:
                outcomes.append(server.decode(SLEEP).status_code)
            except requests.ConnectionError:
                outcomes.append("broken")

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.4)
        children = psutil.Process(server.process.pid).children(recursive=True)
        next(child for child in children if child.name() == "raylet").kill()
        thread.join(timeout=60)
        assert outcomes in ([200], [503], ["broken"])
        assert server.process.wait(timeout=90) == 1
        assert "Ray has ended by itself" in server.log.read_text()
        assert alive(children) == []
