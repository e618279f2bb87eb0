"""The application on Ray Serve: what differs from a single machine, as far as no Ray is needed for it."""

import asyncio
import contextlib
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_python.chart
import httpx2
import psutil
import pytest
import yaml

from remote_vae.deploy import ray_local
from remote_vae.deploy.ray_flow import Reporting
from remote_vae.deploy.ray_local import Scale
from remote_vae.deploy.ray_serve import DEPLOYMENT, Hosted, Replica, application, below_prefix
from remote_vae.errors import ConfigurationError

HERE = Path(__file__).parent


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
def test_a_start_that_cannot_be(serve: Any, arguments: list[str], text: str) -> None:
    """What is wrong is one line on stderr before any Ray is started."""
    ended = serve("--port", "0", *arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert text in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_port_that_is_taken(serve: Any) -> None:
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
    assert "pip install '.[ray]'" in " ".join(ended.stderr.split())


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
            image = {"repository": "registry.example/remote-vae", "tag": "cuda"}
            values = {"mode": "rayservice", "keysSecret": "keys", "image": image}
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

    hosted = asyncio.create_task(Hosted(None, end, patience=1)({"type": "lifespan"}, incoming.get, send))  # type: ignore[arg-type]
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

    await Hosted(app, None, patience=1)({"type": "http", "path": "/"}, None, send)  # type: ignore[arg-type]
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
        await Hosted(app, None, patience=1)({"type": "http", "path": "/"}, receive, send)  # type: ignore[arg-type]
    assert sent == []


@pytest.mark.parametrize("reporting", [True, False])
async def test_streams_need_a_proxy_that_reports(reporting: bool) -> None:
    """Behind a proxy that does not say what its client has taken, a replica sends whole videos only, and says so."""
    replica = Replica({"models": ("films=.,recipe=hunyuanvideo",)}, "misbehaving:load")
    app = await replica.__serve_build_asgi_app__()
    transport = httpx2.ASGITransport(Reporting(app) if reporting else app)
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            url = "/?shape=1,3,2,8,8&dtype=float32&output_type=pt"
            whole = await client.post(url, content=bytes(1536), headers={"content-type": "tensor/binary"})
            streamed = await client.post(url + "&stream=1", content=bytes(1536), headers=whole.request.headers)
    finally:
        await replica._life.aclose()
    assert (whole.status_code, streamed.status_code) == (200, 200 if reporting else 422), streamed.text
    assert reporting or "leave stream out" in streamed.json()["error"]


@pytest.mark.parametrize(("text", "least", "most"), [("1", 1, 1), ("3", 3, 3), ("1-4", 1, 4)])
def test_scale(text: str, least: int, most: int) -> None:
    """A number of replicas is fixed; two with a hyphen are the least and the most."""
    assert Scale.parse(text) == Scale(least, most)


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
