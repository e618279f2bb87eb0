"""The application on Ray Serve: what differs from a single machine, and what must not."""

import asyncio
import contextlib
import json
import os
import pickle
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

import helm_python.chart
import psutil
import pytest
import requests
import yaml

from remote_vae.deploy import ray_local
from remote_vae.deploy.ray_local import Scale
from remote_vae.deploy.ray_serve import DEPLOYMENT, Hosted, application, below_prefix
from remote_vae.errors import ConfigurationError

pytestmark = pytest.mark.alone
HERE = Path(__file__).parent
SLEEP = 8.0  # the first value of a latent that makes the VAE take a second


@pytest.fixture(scope="module")
def two(start: Any) -> Iterator[Any]:
    """A server of two replicas in a Ray of its own."""
    with start("copy", "flux1", replicas=2) as server:
        yield server


@pytest.fixture
def port() -> int:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def processes(server: Any, name: str) -> list[psutil.Process]:
    """Of the server, those whose command line begins so."""
    found = psutil.Process(server.process.pid).children(recursive=True)
    return [child for child in found if child.is_running() and " ".join(child.cmdline()).startswith(name)]


def actors(server: Any) -> list[psutil.Process]:
    return [child for child in processes(server, "ray::ServeReplica") if ".initialize" not in child.cmdline()[0]]


def alive(children: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run; one whose parent died before it may wait as a zombie for somebody to ask."""
    return [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`remote-vae serve --ray` until it ends by itself."""
    command = [sys.executable, "-m", "remote_vae.cli.main", "serve", "--ray", *arguments]
    env = {**os.environ, **environment, "COLUMNS": "400", "NO_COLOR": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--ray-replicas", "many"], "--ray-replicas='many' is not a number of replicas"),
        (["--ray-replicas", "4-2"], "--ray-replicas='4-2' is not a number of replicas"),
        (["--ray-cpus", "-1"], "--ray-cpus=-1 must be 0 or more"),
        (["--model", "nobody"], "model 'nobody' is not in the registry"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["--host", "0.0.0.0"], "anyone on the network could use this server"),
        (["--tls-certificate", "a.pem", "--tls-key", "b.pem"], "--ray speaks no TLS"),
        (["--metrics-address", "127.0.0.1:9100"], "nothing would listen at --metrics-address"),
    ],
)
def test_a_start_that_cannot_be(arguments: list[str], text: str) -> None:
    """What is wrong is one line on stderr before any Ray is started."""
    ended = serve("--port", "0", *arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert text in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_port_that_is_taken() -> None:
    """A port that somebody listens on already is said in one line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        ended = serve("--port", port)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr


def test_ray_that_is_not_installed() -> None:
    """Without Ray the message is the command that installs it."""
    program = "import sys; sys.modules['ray'] = None; from remote_vae.cli.main import main; main()"
    command = [sys.executable, "-c", program, "serve", "--ray", "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "pip install 'remote-vae[ray]'" in " ".join(ended.stderr.split())


def test_replicas_that_do_not_fit_and_a_model_that_does_not_load() -> None:
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


def test_arguments_of_a_configuration_file() -> None:
    """A key or a model in `args` that nobody knows is refused by name, before a replica is started."""
    with pytest.raises(ConfigurationError, match="colour: Extra inputs are not permitted"):
        application({"colour": "red"})
    with pytest.raises(ConfigurationError, match="model 'nobody' is not in the registry"):
        application({"models": ["nobody"]})
    with pytest.raises(ConfigurationError, match="anyone who reaches the cluster could use this application"):
        application({"models": ["sd1"]})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray's own code
@pytest.mark.parametrize("path", ["ray/serve.yaml", "helm"])
def test_the_shipped_configurations(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray takes the configurations that this project ships, and each of their applications can be built."""
    from ray.serve import Application
    from ray.serve.schema import ServeDeploySchema

    (tmp_path / "keys").write_text("a-key-that-nobody-has\n")
    monkeypatch.setenv("REMOTE_VAE_KEYS_FILE", str(tmp_path / "keys"))
    deploy = HERE.parent.parent / "deploy"
    if path == "helm":
        with helm_python.chart.Chart.load(deploy / "helm" / "remote-vae") as chart:
            values = {"mode": "rayservice", "keysSecret": "keys"}
            text = chart.render(values=values, name="demo")["remote-vae/templates/rayservice.yaml"]
        found = yaml.safe_load(yaml.safe_load(text)["spec"]["serveConfigV2"])
    else:
        found = yaml.safe_load((deploy / path).read_text())
    for item in ServeDeploySchema.model_validate(found).applications:
        assert item.import_path == f"{application.__module__}:{application.__name__}"
        assert [each.name for each in item.deployments] == [DEPLOYMENT]
        assert isinstance(application(item.args), Application)


@pytest.mark.parametrize(
    ("prefix", "path", "expected"),
    [("", "/a/decode", "/a/decode"), ("/video", "/video/a/decode", "/a/decode"), ("/video", "/video", "/")],
)
def test_below_a_prefix(prefix: str, path: str, expected: str) -> None:
    """The application reads a path as if it were alone, whatever prefix its group of models has."""
    scope = {"type": "http", "root_path": prefix, "path": path, "raw_path": path.encode()}
    found = below_prefix(scope)
    assert (found["root_path"], found["path"], found["raw_path"]) == ("", expected, expected.encode())


async def test_the_end_reaches_the_application() -> None:
    """Ray's two lifespan messages begin nothing twice and end the application once."""
    ended: list[bool] = []

    async def end() -> None:
        ended.append(True)

    incoming: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    outgoing: list[str] = []

    async def send(message: Any) -> None:
        outgoing.append(message["type"])

    hosted = asyncio.create_task(Hosted(None, end)({"type": "lifespan"}, incoming.get, send))  # type: ignore[arg-type]
    incoming.put_nowait({"type": "lifespan.startup"})
    await asyncio.sleep(0)
    assert ended == []
    incoming.put_nowait({"type": "lifespan.shutdown"})
    await hosted
    assert (ended, outgoing) == ([True], ["lifespan.startup.complete", "lifespan.shutdown.complete"])


async def test_a_body_is_bytes_for_ray() -> None:
    """Ray pickles a reply, so a body that the application sends as a view of its memory travels as bytes."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": memoryview(b"pixels"), "more_body": True})

    async def send(message: Any) -> None:
        sent.append(message)

    await Hosted(app, None)({"type": "http", "path": "/"}, None, send)  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(sent))[1] == {**sent[1], "body": b"pixels", "more_body": True}


@pytest.mark.parametrize("broken", [False, True])
async def test_no_answer_to_a_lost_connection(broken: bool) -> None:
    """What the application answers to a lost connection reaches nobody: it would be final for a client that waits."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(ConnectionError):
            assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 400, "headers": []})

    async def receive() -> Any:
        if broken:
            raise ConnectionError("the proxy's actor is gone")
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(OSError, match="is gone"):
        await Hosted(app, None)({"type": "http", "path": "/"}, receive, send)  # type: ignore[arg-type]
    assert sent == []


@pytest.mark.parametrize(("text", "least", "most"), [("1", 1, 1), ("3", 3, 3), ("1-4", 1, 4)])
def test_scale(text: str, least: int, most: int) -> None:
    """A number of replicas is fixed; two with a hyphen are the least and the most."""
    assert Scale.parse(text) == Scale(least, most)


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
    connections = [socket.create_connection(("127.0.0.1", two.port)) for _ in range(12)]
    for connection in connections:
        connection.sendall(head + body)
    time.sleep(0.5)
    for connection in connections:
        connection.close()
    asked = time.monotonic()
    assert two.decode().status_code == 200
    assert time.monotonic() - asked < 3


def test_a_replica_that_is_killed(two: Any) -> None:
    """Of a replica that is killed only its own requests fail, as a broken connection or a 503; others are served."""
    outcomes: list[object] = []

    def ask() -> None:
        try:
            outcomes.append(two.decode(SLEEP).status_code)
        except requests.ConnectionError:
            outcomes.append("broken")

    threads = [threading.Thread(target=ask) for _ in range(6)]  # some for each replica
    for thread in threads:
        thread.start()
    time.sleep(0.4)
    victim = actors(two)[0]
    victim.kill()
    for thread in threads:
        thread.join()
    assert set(map(str, outcomes)) in ({"200", "503"}, {"200", "broken"}, {"200", "503", "broken"})
    for _ in range(10):
        assert two.decode().status_code == 200
    deadline = time.monotonic() + 30
    while len(actors(two)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(actors(two)) == 2


@pytest.mark.parametrize(("said", "taken"), [(None, "0"), ("7", "7")])
def test_priority(said: str | None, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas have the service's own priority, unless Ray's own variable says otherwise."""
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    if said is not None:
        monkeypatch.setenv("RAY_worker_niceness", said)
    assert ray_local._environment()["RAY_worker_niceness"] == taken


def test_processes_come_and_go() -> None:
    """A process that ends while Ray's processes are looked for is none of them, and no failure."""
    gone = subprocess.Popen(["sleep", "60"])
    vanished = psutil.Process(gone.pid)
    gone.kill()
    gone.wait()
    kept = subprocess.Popen(["sleep", "60"])
    try:
        assert ray_local._runs("sleep", [vanished, psutil.Process(kept.pid)])
        assert not ray_local._runs("sleep", [vanished])
    finally:
        kept.kill()
        kept.wait()


def test_while_ray_starts(port: int) -> None:
    """The service's port is not among the free ones that Ray's processes take, and SIGTERM ends it all, with 0."""
    command = [sys.executable, "-m", "remote_vae.cli.main", "serve", "--ray", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        ends = time.monotonic() + 60
        while not any(child.name() == "raylet" for child in psutil.Process(process.pid).children()):
            assert time.monotonic() < ends
            time.sleep(0.1)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=15) == (b"", b"")
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
        time.sleep(0.7)
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
