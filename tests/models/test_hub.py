"""Models from a hub: a small one on loopback, asked by the real client in a process with an environment of its own."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from remote_vae.models import hub as hub_module
from remote_vae.models.spec import ModelSpec

TINY: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
TOKEN = "hf_of_nobody"
COMMITS = {"main": "a" * 40, "old": "b" * 40}
SCRIPT = """
import json, os, sys
from remote_vae.errors import ModelLoadError
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec
for spec in json.loads(sys.argv[1]):
    if spec["anonymous"]:
        del os.environ["HF_TOKEN"]
    try:
        info = load(ModelSpec.from_json(spec)).info
        print(json.dumps([info.constants.scaling_factor, info.source, info.revision]))
    except ModelLoadError as exc:
        print(json.dumps(str(exc)))
"""


@dataclass
class Hub:
    """What is stored, as {(repository, commit): {path: bytes}}, and what was asked for."""

    files: dict[tuple[str, str], dict[str, bytes]]
    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)


def vae_files(folder: Path, scaling_factor: float) -> dict[str, bytes]:
    torch.manual_seed(1)
    AutoencoderKL(**TINY, latent_channels=4, scaling_factor=scaling_factor).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    new, old = vae_files(folder / "new", 0.31), vae_files(folder / "old", 0.43)
    rest = {"unet/diffusion_pytorch_model.safetensors": b"huge", "sd.safetensors": b"huge", "model.ckpt": b"pickle"}
    extra = {"vae/diffusion_pytorch_model.fp16.safetensors": b"half", "vae/diffusion_pytorch_model.bin": b"pickle"}
    found = Hub(
        {
            ("some/pipeline", COMMITS["main"]): {
                **{f"vae/{name}": data for name, data in new.items()},
                **rest,
                **extra,
            },
            ("some/pipeline", COMMITS["old"]): {f"vae/{name}": data for name, data in old.items()},
            ("some/vae", COMMITS["main"]): {**new, **rest},
            ("some/other", COMMITS["main"]): {**new, **rest},
            ("some/gated", COMMITS["main"]): {"vae/config.json": new["config.json"]},
            ("some/half", COMMITS["main"]): {
                "vae/config.json": new["config.json"],
                "vae/diffusion_pytorch_model.fp16.safetensors": new["diffusion_pytorch_model.safetensors"],
                "vae/diffusion_pytorch_model.bf16.safetensors": b"unread",
                "vae/diffusion_pytorch_model.bin": b"pickle",
            },
        }
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(found))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    yield found
    server.shutdown()
    thread.join(10)
    server.server_close()


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            if len(parts) < 5:  # the client asks for things of its own, which have no repository
                self.reply(404, b"", {}, with_body=with_body)
                return
            hub.tokens.append(self.headers["authorization"])
            if self.headers["authorization"] != f"Bearer {TOKEN}":
                self.reply(401, b"", {}, with_body=with_body)
                return
            if parts[:2] == ["api", "models"]:
                self.describe("/".join(parts[2:4]), *parts[4:6], with_body=with_body)
                return
            repository, commit, path = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            data = hub.files.get((repository, commit), {}).get(path)
            if repository == "some/gated":
                self.reply(403, b"", {"X-Error-Code": "GatedRepo"}, with_body=with_body)
                return
            if data is None:
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body=with_body)
                return
            hub.asked.append((repository, path))
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}
            self.reply(200, data, headers, with_body=with_body)

        def describe(self, repository: str, what: str, revision: str, *, with_body: bool) -> None:
            commit = COMMITS.get(revision, revision)
            files = hub.files.get((repository, commit))
            if files is None:
                known = any(name == repository for name, _ in hub.files)
                missing = {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}
                self.reply(404, b"{}", missing, with_body=with_body)
                return
            document: Any = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            if what == "tree":
                document = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
            self.reply(200, json.dumps(document).encode(), {"Content-Type": "application/json"}, with_body=with_body)

        def reply(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def ask(home: Path, specs: list[dict[str, object]], **environment: str) -> list[Any]:
    """What loading each spec gave, in a process of its own: the hub's client reads its settings at import."""
    defaults = {"source": None, "recipe": "sd1", "dtype": None, "revision": None, "subfolder": None, "anonymous": False}
    whole = [{**ModelSpec("sd1", device="cpu").to_json(), "name": "mine", **defaults, **spec} for spec in specs]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(whole)],
        env={**inherited, "HF_HOME": str(home), **environment},
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def home(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A cache filled from the hub, and what filling it said."""
    folder = tmp_path_factory.mktemp("home")
    specs: list[dict[str, object]] = [
        {"source": "some/pipeline"},
        {"source": "some/pipeline", "subfolder": "vae", "revision": "old"},
        {"source": "some/vae"},
        {"source": "some/half"},
        {"source": "some/pipeline", "subfolder": "unet"},
        {"source": "some/other", "recipe": "taesd"},
        {"source": "some/absent"},
        {"source": "some/private", "anonymous": True},
    ]
    return folder, ask(folder, specs, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)


def test_hub_ids(home: tuple[Path, list[Any]]) -> None:
    """A hub id is loaded from its vae folder or its root, at the revision and from the subfolder that were named."""
    pipeline, old, vae, *_ = home[1]
    assert pipeline == [0.31, "some/pipeline", COMMITS["main"]]
    assert old == [0.43, "some/pipeline", COMMITS["old"]]
    assert vae == [0.31, "some/vae", COMMITS["main"]]


def test_only_the_vae_is_fetched(hub: Hub, home: tuple[Path, list[Any]]) -> None:
    """Of a repository that holds a whole pipeline only the VAE's config and safetensors are fetched."""
    allowed = {"config.json", "diffusion_pytorch_model.safetensors"}
    plain = {path for repository, path in hub.asked if repository != "some/half"}
    assert plain <= {prefix + name for prefix in ("", "vae/", "unet/") for name in allowed}
    assert ("some/vae", "unet/diffusion_pytorch_model.safetensors") not in hub.asked
    fetched = {path.name for path in (home[0] / "hub" / "models--some--vae" / "snapshots").rglob("*.*")}
    assert fetched == allowed


def test_a_variant_is_fetched_if_there_is_nothing_else(hub: Hub, home: tuple[Path, list[Any]]) -> None:
    """Of a repository that has its weights as variants alone, one variant is fetched and loaded."""
    assert home[1][3] == [0.31, "some/half", COMMITS["main"]]
    assert {path for repository, path in hub.asked if repository == "some/half"} == {
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }


def test_a_subfolder_without_a_vae_and_an_absent_repository(home: tuple[Path, list[Any]]) -> None:
    """A subfolder that is no VAE's and a repository that is not there are refused, each by its name."""
    *_, unet, _, absent, _ = home[1]
    assert "no config.json" in unet
    assert "'some/absent' cannot be had from the hub" in absent


def test_weights_of_another_class_are_not_fetched(hub: Hub, home: tuple[Path, list[Any]]) -> None:
    """A repository whose config.json tells that the recipe is wrong is refused before its weights are fetched."""
    *_, refused, _, _ = home[1]
    assert "for which recipe 'taesd' would give a wrong picture" in refused
    assert {path for repository, path in hub.asked if repository == "some/other"} == {"config.json"}


def test_the_token_reaches_the_hub(hub: Hub, home: tuple[Path, list[Any]]) -> None:
    """HF_TOKEN is sent with every request; without it a hub that wants one refuses, and the refusal names it."""
    *with_token, without = hub.tokens
    assert set(with_token) == {f"Bearer {TOKEN}"}
    assert without is None
    assert "'some/private' cannot be had" in home[1][-1]
    assert "HF_TOKEN" in home[1][-1]


def test_why_weights_cannot_be_had(hub: Hub, tmp_path: Path) -> None:
    """A gated repository is named with the page to accept it on; a wrong revision, name or repository is told apart."""
    specs: list[dict[str, object]] = [
        {"source": "some/gated"},
        {"source": "some/vae", "revision": "nowhere"},
        {"source": "some/absent"},
        {"source": "some/"},
    ]
    gated, revision, absent, name = ask(tmp_path, specs, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert f"it is gated; accept its conditions at {hub.url}/some/gated, and HF_TOKEN must be" in gated
    assert f"it has no revision 'nowhere'; see {hub.url}/some/vae" in revision
    assert f"{hub.url}/some/absent does not exist, or is private" in absent
    assert "this is not the name of a repository" in name


def test_without_a_network(home: tuple[Path, list[Any]], tmp_path: Path) -> None:
    """A hub that takes no connection is said to be out of reach, and the cache is taken."""
    away = "http://127.0.0.1:9"
    cached, absent = ask(home[0], [{"source": "some/vae"}, {"source": "some/third"}], HF_ENDPOINT=away)
    assert cached == [0.31, "some/vae", COMMITS["main"]]
    assert f"there is no network, or {away} is down or does not answer, and it is not in the cache" in absent


def test_a_hub_whose_network_swallows_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that neither connects nor refuses is given up after a few seconds."""
    monkeypatch.setattr(hub_module, "CONNECT_SECONDS", 0.2)

    def never(*_: object) -> None:
        time.sleep(30)
        raise OSError

    monkeypatch.setattr(hub_module.socket, "create_connection", never)
    started = time.monotonic()
    assert not hub_module._is_reachable("https://hub.invalid")
    assert time.monotonic() - started < 20


def test_a_hub_that_takes_a_connection_and_never_answers(home: tuple[Path, list[Any]]) -> None:
    """A hub that is silent after the connection is given up as one out of reach, and the cache is taken."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_hub = f"http://127.0.0.1:{silent.getsockname()[1]}"
        specs: list[dict[str, object]] = [{"source": "some/third"}, {"source": "some/vae"}]
        absent, cached = ask(home[0], specs, HF_ENDPOINT=silent_hub, HF_HUB_ETAG_TIMEOUT="1")
    assert f"{silent_hub} is down or does not answer, and it is not in the cache" in absent
    assert cached == [0.31, "some/vae", COMMITS["main"]]


def test_a_long_download_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every few seconds a line on standard error has the bytes that have come, with or without a terminal."""
    monkeypatch.setattr(hub_module, "TELL_SECONDS", 0.0)
    bar = hub_module._bar_of_lines("some/vae")(total=335_000_000, unit="B", mininterval=0)
    bar.update(120_000_000)
    bar.close()
    said = capsys.readouterr()
    assert (said.out, said.err.count("\r")) == ("", 0)
    assert said.err.startswith("remote-vae: some/vae is coming: 120 of 335 MB, ")


def test_offline(home: tuple[Path, list[Any]]) -> None:
    """Offline a cached model is loaded by branch or commit, one laid out by hand too, and an absent one is refused."""
    cache = home[0] / "hub"
    by_hand = cache / "models--by--hand"
    (by_hand / "refs").mkdir(parents=True)
    (by_hand / "refs" / "main").write_text(COMMITS["old"])
    vae_files(by_hand / "snapshots" / COMMITS["old"] / "vae", 0.59)
    specs: list[dict[str, object]] = [
        {"source": "some/pipeline"},
        {"source": "some/pipeline", "revision": COMMITS["old"]},
        {"source": "by/hand"},
        {"source": "some/third"},
    ]
    *found, absent = ask(home[0], specs, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert found == [
        [0.31, "some/pipeline", COMMITS["main"]],
        [0.43, "some/pipeline", COMMITS["old"]],
        [0.59, "by/hand", COMMITS["old"]],
    ]
    assert "'some/third' cannot be had from the hub" in absent
