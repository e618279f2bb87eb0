"""A server's life: starting, failing to start, losing a replica, and stopping."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from typer.testing import CliRunner

from remote_vae import RemoteVAE
from remote_vae.cli.main import app
from remote_vae.errors import NotReady
from remote_vae.server.settings import Settings

RAW = {"content-type": "tensor/binary"}
SLEEP, DIE, RAISE, HANG = 8.0, 7.0, 9.0, 10.0  # what the first value of a latent makes the VAE do


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`remote-vae serve` until it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "remote_vae.cli.main", "serve", *arguments],
        env={**os.environ, **environment, "COLUMNS": "400", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "text"),
    [
        (["--model", "nobody"], {}, "model 'nobody' is not in the registry"),
        (["--model", "a=/nowhere,recipe=sd1"], {}, "there is no config.json in folder '/nowhere'"),
        (["--model", "a=/nowhere,recipe=sd9"], {}, "recipe 'sd9' is not known"),
        (["--model", "a=/nowhere,colour=red"], {}, "'colour=red' in model"),
        (["--model", "sd1,dtype=float32,dtype=float16"], {}, "dtype is given twice in model"),
        (["--model", "ready=/nowhere,recipe=sd1"], {}, "model name 'ready' cannot be a route"),
        (["--model", "sd1", "--model", "sd1"], {}, "model name 'sd1' is given twice"),
        (["--port", "70000"], {}, "port: Input should be less than or equal to 65535"),
        (["--dtype", "int8"], {}, "dtype: Input should be"),
        (["--max-batch", "0"], {}, "max_batch: Input should be greater than or equal to 1"),
        ([], {"REMOTE_VAE_PORT": "http"}, "port: Input should be a valid integer"),
        ([], {"REMOTE_VAE_MODELS": " ; "}, "at least one model is needed"),
        (["--host", "192.0.2.1"], {}, "cannot listen on 192.0.2.1"),
        (["--host", "no such host"], {}, "cannot listen on no such host"),
    ],
)
def test_a_start_that_fails_is_one_sentence(arguments: list[str], environment: dict[str, str], text: str) -> None:
    """A server that cannot start says why in one line on stderr, without a traceback, and ends with 1."""
    ended = command(*arguments, **{"REMOTE_VAE_PORT": "0", **environment})
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("remote-vae: ")
    assert text in lines[0]


def test_port_that_is_taken() -> None:
    """A port that somebody listens on already is said in one line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        ended = command("--port", port)
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("fault", ["cut short", "no header", "another architecture"])
def test_corrupt_weights(live: Any, tmp_path: Path, fault: str) -> None:
    """A server whose weights are broken or of another architecture never serves; it says so and ends with 1."""
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        source = "flux" if fault == "another architecture" and name != "config.json" else "sd"
        (tmp_path / name).write_bytes((live.folder / source / name).read_bytes())
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    if fault == "cut short":
        weights.write_bytes(weights.read_bytes()[:-1000])
    if fault == "no header":
        weights.write_bytes(b"\xff" * 1000)
    ended = command("--port", "0", "--model", f"a={tmp_path},recipe=sd1")
    assert ended.returncode == 1
    assert f"the weights in '{tmp_path}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_every_setting_is_a_flag_and_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting has a flag of its name and a variable REMOTE_VAE_<NAME>, and a flag beats the variable."""
    text = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, ["serve", "--help"]).output
    for name in Settings.model_fields:
        assert f"--{name.removesuffix('s') if name == 'models' else name}".replace("_", "-") in text
    monkeypatch.setenv("REMOTE_VAE_MAX_BATCH", "3")
    monkeypatch.setenv("REMOTE_VAE_MODELS", "sd1; flux1=/a b,recipe=flux1")
    assert Settings().max_batch == 3
    assert Settings().models == ("sd1", "flux1=/a b,recipe=flux1")
    assert Settings(max_batch=4).max_batch == 4


def test_random_weights(free_address: tuple[str, int]) -> None:
    """Models of the registry are served with seeded weights, each at its own path, without a download."""
    url, port = free_address
    arguments = ["--model", "taesd", "--model", "taef1", "--random-weights", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "remote_vae.cli.main", "serve", *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(url + "/ready", timeout=5).status_code == 200:
                    break
            time.sleep(0.1)
        for name, channels in (("taesd", 4), ("taef1", 16)):
            query = f"shape=1,{channels},8,8&dtype=float32"
            reply = requests.post(f"{url}/{name}?{query}", bytes(channels * 256), timeout=60, headers=RAW)
            assert (reply.status_code, reply.headers.get("x-model")) == (200, name)
            assert reply.headers["content-type"] == "image/jpeg"
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0


def test_limits_are_honoured(start: Any) -> None:
    """A limit that is set by the operator is what a reply names, and what /models says."""
    with start("copy", max_batch=2, unknown_parameters="ignore") as server:
        reply = requests.post(server.url + "/?shape=3,3,8,8&dtype=float32&typo=1&output_type=pt", timeout=10)
        assert (reply.status_code, reply.json()["detail"]["limit"]) == (413, 2)
        assert requests.get(server.url + "/models", timeout=10).json()["models"][0]["limits"]["max_batch"] == 2


def test_while_loading(start: Any) -> None:
    """While a model loads the server is live but not ready: 503 with Retry-After, for pages and for work."""
    with start("slow-to-load", ready=False) as server:
        assert requests.get(server.url + "/health", timeout=10).status_code == 200
        pages = [requests.get(server.url + path, timeout=10) for path in ("/ready", "/models")]
        for reply in (*pages, server.decode()):
            assert reply.status_code == 503
            assert int(reply.headers["retry-after"]) >= 1
            assert reply.json()["error_type"] == "not_ready"
        server.wait_until_live()
        assert server.decode().status_code == 200


def test_loaded_models_while_others_load(start: Any) -> None:
    """A loaded model works and has its card while another one loads, and can be wrapped by RemoteVAE; /ready waits."""
    with start("copy", "never-loads", lazy=False, ready=False) as server:
        server.wait_until(lambda: requests.get(server.url + "/models", timeout=10).status_code == 200, seconds=120)
        document = requests.get(server.url + "/models", timeout=10).json()
        assert [card["name"] for card in document["models"]] == ["copy"]
        assert (document["default"], document["unknown"], document["loading"]) == ("copy", [], ["never-loads"])
        assert RemoteVAE(f"{server.url}/copy").decode(torch.zeros(1, 3, 8, 8)).sample.shape == (1, 3, 8, 8)
        assert server.decode(path="/copy").status_code == 200
        with pytest.raises(NotReady, match=r"'never-loads' at .* is still loading"):
            RemoteVAE(f"{server.url}/never-loads")
        for reply in (requests.get(server.url + "/ready", timeout=10), server.decode(path="/never-loads")):
            assert (reply.status_code, reply.json()["error_type"]) == (503, "not_ready")


def test_an_idle_model_is_unloaded(start: Any) -> None:
    """A model that is unloaded is named by /models and /metrics, /ready stays 200, and the next request is answered."""
    with start("copy", idle_seconds=1) as server:
        unloads = 'remote_vae_unloads_total{cause="idle",model="copy"} 1.0'
        server.wait_until(lambda: unloads in requests.get(server.url + "/metrics", timeout=10).text, seconds=120)
        assert 'remote_vae_model_loaded{model="copy"} 0.0' in requests.get(server.url + "/metrics", timeout=10).text
        document = requests.get(server.url + "/models", timeout=10).json()
        assert (document["unloaded"], [card["name"] for card in document["models"]]) == (["copy"], ["copy"])
        assert requests.get(server.url + "/ready", timeout=10).status_code == 200
        assert server.decode().status_code == 200


@pytest.mark.parametrize("model", ["copy", "never-loads"])
def test_stopping_is_quick(start: Any, model: str) -> None:
    """A server without work, loading or not, ends with 0 within 5 seconds of SIGTERM and leaves no process behind."""
    with start(model, ready=model == "copy") as server:
        deadline = time.monotonic() + 20
        while not server.replicas() and time.monotonic() < deadline:
            time.sleep(0.05)
        replicas = server.replicas()
        idle = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        idle.request("GET", "/live")
        idle.getresponse().read()
        asked = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 0
        assert time.monotonic() - asked < 5
        idle.close()
    assert len(replicas) == 1
    for pid in replicas:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_accepted_work_is_finished(start: Any) -> None:
    """On SIGTERM what is accepted is answered, everything else gets 503 at once, and the server ends with 0."""
    with start("copy") as server:
        replies: list[requests.Response] = []
        threads = [threading.Thread(target=lambda: replies.append(server.decode(SLEEP))) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.7)
        for pid in (*server.replicas(), server.process.pid):  # as a service manager does
            os.kill(pid, signal.SIGTERM)
        for reply in (requests.get(server.url + "/ready", timeout=5), server.decode()):
            assert (reply.status_code, reply.json()["error_type"]) == (503, "not_ready")
            assert int(reply.headers["retry-after"]) >= 1
        assert requests.get(server.url + "/live", timeout=5).status_code == 200
        for thread in threads:
            thread.join()
        assert [reply.status_code for reply in replies] == [200] * 3
        assert server.process.wait(timeout=20) == 0


def test_a_stop_that_takes_too_long(start: Any) -> None:
    """Work that is not done within shutdown_seconds does not keep the server from ending, which then says so."""
    with start("copy", shutdown_seconds=1) as server:
        threads = [threading.Thread(target=ignore_breaks, args=(server,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        asked = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=20) == 1
        assert time.monotonic() - asked < 6
        for thread in threads:
            thread.join()


def test_a_second_signal(start: Any) -> None:
    """A second SIGTERM ends the server at once, with its replicas, whatever they are at."""
    with start("copy") as server:
        thread = threading.Thread(target=ignore_breaks, args=(server, HANG))
        thread.start()
        time.sleep(0.5)
        replicas = server.replicas()
        for _ in range(2):
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        assert server.process.wait(timeout=3) == 1
        thread.join()
    for pid in replicas:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def ignore_breaks(server: Any, first: float = SLEEP) -> None:
    with contextlib.suppress(requests.ConnectionError):
        server.decode(first)


def test_a_killed_replica(start: Any) -> None:
    """A replica that is killed over a request is replaced, and the request done again; no other one is disturbed."""
    with start("copy", "flux1") as server:
        replies: list[requests.Response] = []
        thread = threading.Thread(target=lambda: replies.append(server.decode(SLEEP)))
        thread.start()
        time.sleep(0.4)
        os.kill(server.replicas()[0], signal.SIGKILL)
        server.wait_until(lambda: requests.get(server.url + "/ready", timeout=5).status_code == 503, seconds=2)
        assert server.decode(path="/flux1").status_code == 200
        thread.join()
        assert replies[0].status_code == 200
        assert replies[0].content == server.decode(SLEEP).content
        assert requests.get(server.url + "/ready", timeout=5).status_code == 200
        assert len(server.replicas()) == 2


def test_a_replica_that_dies_of_its_work(start: Any) -> None:
    """A request over which two processes die is 500 poison_request, then and at once when sent again."""
    with start("copy") as server:
        assert server.decode(DIE).json()["error_type"] == "poison_request"
        assert server.decode().status_code == 200
        replicas = server.replicas()
        again = server.decode(DIE)
        assert (again.status_code, again.json()["error_type"]) == (500, "poison_request")
        assert server.replicas() == replicas


def test_an_error_inside_tells_nothing(start: Any) -> None:
    """What a model's code raises is 500 with a fixed text; the log has the request's id and no word of the request."""
    with start("copy") as server:
        reply = server.decode(RAISE)
        assert (reply.status_code, reply.json()["error_type"]) == (500, "internal_error")
        assert "internal name" not in reply.text
        assert reply.json()["request_id"] in server.log.read_text()
        assert server.decode().status_code == 200
    assert "internal name" not in server.log.read_text()
