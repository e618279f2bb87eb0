"""Nothing of a request stays, on disk, in the log, in a metric or in shared memory. EVERY=1 asks more often."""

import base64
import contextlib
import io
import os
import re
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image, PngImagePlugin

from confined import can_trace, read_only, traced

ROUNDS = 84 if os.environ.get("EVERY") else 9  # of the twelve kinds of requests below
COPY = "shape=1,3,8,8&dtype=float32&output_type=pt"
DIE, RAISE = 7.0, 9.0
RAW = {"content-type": "tensor/binary"}


class Canary:
    """Bytes that nobody else has, in every form in which they might be found again."""

    def __init__(self, chance: str | None = None) -> None:
        self.text = "canary" + (chance or secrets.token_hex(29))  # 64 bytes; as floats they are finite
        raw = self.text.encode()
        self.needles = [raw, raw.hex().encode(), base64.b64encode(raw)[:80], raw[::-1]]

    def latent(self, first: float = 1.0) -> bytes:
        values = np.frombuffer(self.text.encode() * 12, np.float32).copy()
        values[0] = first
        return values.tobytes()

    def picture(self) -> bytes:
        pixels = np.frombuffer(self.text.encode() * 3, np.uint8).reshape(8, 8, 3)
        info = PngImagePlugin.PngInfo()
        info.add_text("comment", self.text)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG", pnginfo=info, compress_level=0)
        return out.getvalue()

    def found_in(self, data: bytes) -> bool:
        return any(needle in data for needle in self.needles)


def mixed(url: str, canary: Canary) -> list[Callable[[], requests.Response]]:
    """Twelve kinds of requests: good ones, bad ones, one at which the VAE fails and one at which its process dies."""
    text = canary.text
    odd = {
        "user-agent": text,
        "referer": f"http://{text}/",
        "cookie": text,
        "x-forwarded-for": text,
        "x-request-id": text,
    }

    def post(path: str, body: bytes = b"", **headers: str) -> Callable[[], requests.Response]:
        return lambda: requests.post(url + path, body, headers={**odd, **headers}, timeout=60)

    inputs = b'{"inputs": "%b"}' % base64.b64encode(canary.latent())
    return [
        post(f"/?{COPY}", canary.latent(), **RAW),
        post(f"/?{COPY}", inputs, **{"content-type": "tensor/base64"}),
        post("/?shape=1,3,8,8&dtype=float32&image_format=png", canary.latent(), **RAW),
        post("/encode", canary.picture()),
        post("/encode", canary.picture()[:-20]),
        post("/encode", canary.text.encode()),
        post(f"/?{COPY}&{text}=1", canary.latent(), **RAW),
        post(f"/?{COPY}&plan={text}", canary.latent(), **RAW),
        post(f"/{text[:60]}/decode?{COPY}", canary.latent(), **RAW),
        post(f"/?{COPY}", canary.latent()[:-8], **RAW),
        post(f"/?{COPY}", canary.latent(RAISE), **RAW),
        post(f"/?{COPY}", canary.latent(DIE), **RAW),
    ]


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every folder that a program may think its own is here, and empty."""
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_STATE_HOME", "HF_HOME"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return tmp_path


def shared_memory() -> Iterator[bytes]:
    """What is in every segment of the machine, those of other programs too, which may vanish any time."""
    for path in Path("/dev/shm").glob("psm_*"):
        with contextlib.suppress(FileNotFoundError):
            yield path.read_bytes()


def test_no_canary_is_found(start: Any, at_home: Path) -> None:
    """After requests of every kind, crashes among them, nothing of any is in a file, the log, a metric or /dev/shm."""
    canary = Canary()
    with start("copy", log_requests=True) as server:
        statuses = []
        for _ in range(ROUNDS):
            statuses += [ask().status_code for ask in mixed(server.url, canary)]
            server.wait_until_live()
        metrics = requests.get(f"{server.url}/metrics", timeout=10).content
        processes = [server.process.pid, *server.replicas()]
        shown = b"".join(
            Path(f"/proc/{pid}/{name}").read_bytes() for pid in processes for name in ("cmdline", "environ")
        )
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0
        log = server.log.read_bytes()
    assert statuses.count(200) == 4 * ROUNDS
    assert statuses.count(500) + statuses.count(503) == 2 * ROUNDS
    assert log.count(b'"event": "request"') >= 12 * ROUNDS
    files = [path for path in at_home.rglob("*") if path.is_file()]
    assert files == []
    for place in (*shared_memory(), metrics, shown, log.replace(b'"request_id": "%b"' % canary.text.encode(), b"")):
        assert not canary.found_in(place)
    assert b"127.0.0.1" not in metrics + log


def test_the_canary_would_be_found() -> None:
    """What is searched for is found in a body, in base64, in hexadecimal, and in a picture that was read."""
    canary = Canary()
    assert canary.found_in(canary.latent())
    assert canary.found_in(b"x" + base64.b64encode(canary.text.encode()))
    assert canary.found_in(canary.latent().hex().encode())
    assert canary.found_in(np.asarray(Image.open(io.BytesIO(canary.picture()))).tobytes())


OPENED = re.compile(r"^(?P<pid>\d+)\s+(?P<time>[0-9.]+) (?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
CHANGES = (
    "rename",
    "unlink",
    "mkdir",
    "rmdir",
    "link",
    "symlink",
    "chmod",
    "chown",
    "truncate",
    "creat",
    "mknod",
    "utime",
)


def calls(trace: Path) -> Iterator[tuple[float, str, str]]:
    """Time, name and arguments of every call that succeeded."""
    for line in trace.read_text(errors="replace").splitlines():
        if (found := OPENED.match(line)) and int(found["result"]) >= 0:
            yield float(found["time"]), found["call"], found["arguments"]


def test_no_file_is_opened_to_write(start: Any, tmp_path: Path) -> None:
    """Once it serves, no process of the server opens a file to write, changes one, or connects to anyone."""
    if not can_trace(tmp_path):
        pytest.skip("strace is not here, or not allowed")
    out, canary = tmp_path / "trace", Canary()
    with start("copy", prefix=traced(out)) as server:
        requests.post(f"{server.url}/?{COPY}", canary.latent(), headers=RAW, timeout=60)
        ready = max(time for time, _, _ in calls(out))
        good = mixed(server.url, canary)[:-1]  # a process that is started anew reads and links a great deal
        for ask in good * 2:
            ask()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0
    seen = [(call, arguments) for time, call, arguments in calls(out) if time > ready]
    assert any("psm_" in arguments for call, arguments in seen if call == "unlink")  # it does see what is done
    written = [(c, a) for c, a in seen if c.startswith("open") and ("O_WRONLY" in a or "O_RDWR" in a or "O_CREAT" in a)]
    assert [pair for pair in written if "/dev/shm/" not in pair[1] and "/dev/null" not in pair[1]] == []
    changed = [(c, a) for c, a in seen if c.startswith(CHANGES) and "/dev/shm/" not in a]
    assert changed == []
    assert [(c, a) for c, a in seen if c == "connect" and "AF_INET" in a] == []


def test_a_read_only_file_system(start: Any, expected_replies: list[tuple[int, int]]) -> None:
    """Without a place to write, /tmp included, every kind of request is answered as elsewhere."""
    if not read_only():
        pytest.skip("mount namespaces are forbidden here")
    with start("copy", prefix=read_only()) as server:
        assert replies(server) == expected_replies


@pytest.fixture(scope="module")
def expected_replies(start: Any) -> list[tuple[int, int]]:
    with start("copy") as server:
        return replies(server)


def replies(server: Any) -> list[tuple[int, int]]:
    """Status and length of each, but for the process that dies, whose successor is asked again."""
    found = []
    for ask in mixed(server.url, Canary(chance="5" * 58)):
        reply = ask()
        found.append((reply.status_code, len(reply.content)))
        server.wait_until_live()
    assert server.decode().status_code == 200
    return found
