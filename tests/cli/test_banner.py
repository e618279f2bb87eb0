"""What the server says when it is ready."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.text import Text

from remote_vae.cli.banner import banner
from remote_vae.engine.place import Loaded, Place
from remote_vae.server.settings import read_settings

CARD = Place(
    "cuda:0", "NVIDIA H200", 150 * 10**9, 140 * 10**9, {"whole": 2048, "strips": 2048, "strips-recompute": 8192}
)
CPU = Place("cpu", "x86_64, 2 threads", 16 * 10**9, 9 * 10**9)


def loaded(*places: Place, info: Any = None) -> Loaded:
    about = SimpleNamespace(source="owner/name", revision="451f4fe" + "0" * 33, dtype="float16")
    return Loaded("sd1", info or (about if places else None), places, 6.23)


def said(*models: Loaded, root: Path = Path("/nowhere"), **settings: Any) -> str:
    lines = banner(read_settings(settings), "http://127.0.0.1:8000", list(models), root=root)
    return "\n".join(Text.from_markup(line).plain for line in lines)


def test_what_is_asked_first() -> None:
    """Model, revision, precision, card, memory, largest picture, seconds, addresses, the line for diffusers."""
    text = said(loaded(CARD), loaded(CARD, CARD))
    for what in (
        "owner/name@451f4fe, float16, loaded in 6.2 s",
        "on cuda:0 (NVIDIA H200), 140.0 of 150.0 GB free",
        "up to 2048x2048 by plan whole, 4096x4096 by plan strips-recompute",  # the server's own limit is 4096
        "http://127.0.0.1:8000 and http://127.0.0.1:8000/docs",
        'vae = RemoteVAE("http://127.0.0.1:8000/sd1")',
        "only this machine can reach it",
        "Ctrl-C",
    ):
        assert what in text, text
    assert text.count("cuda:0") == 2  # once for each model


def test_the_example_of_the_readme() -> None:
    """The README shows what the server says, word for word."""
    place = Place("cpu", "x86_64, 2 threads", 25_300_000_000, 6_400_000_000, {"whole": 1024, "strips": 2048})
    info: Any = SimpleNamespace(source="random weights", revision="seed 0", dtype="float32")
    text = said(Loaded("sd1", info, (place,), 10.8), random_weights=True)
    assert f"```text\n{text}\n```" in (Path(__file__).parents[2] / "README.md").read_text()


def test_who_can_reach_it() -> None:
    """On an address of the network the banner says whether a key is needed."""
    assert "every machine that reaches this address, with an API key" in said(host="0.0.0.0", keys="k" * 16)
    assert "every machine that reaches this address, without a key" in said(host="0.0.0.0", allow_anonymous=True)


@pytest.mark.parametrize(("file", "name"), [("dev/nvidiactl", "NVIDIA"), ("dev/kfd", "AMD"), ("dev/dxg", "Windows")])
def test_a_gpu_that_torch_cannot_use(tmp_path: Path, file: str, name: str) -> None:
    """A GPU in the machine of a server that runs on the CPU is a warning, unless the CPU was asked for."""
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).touch()
    assert re.search(
        rf"warning this machine has an? .*{name}.*, but torch \S+ cannot use it", said(loaded(CPU), root=tmp_path)
    )
    assert "warning" not in said(loaded(CPU), root=tmp_path, device="cpu")
    assert "warning" not in said(loaded(CARD), root=tmp_path)
    assert "warning" not in said(loaded(CPU))


def test_a_model_that_is_not_loaded() -> None:
    """A lazy model has nothing to tell yet."""
    assert "sd1  is loaded when it is first asked for" in said(loaded(), lazy=True)


def test_a_real_server(live: Any) -> None:
    """A server that is started says where it runs and how large a picture may be, on stderr."""
    words = ("--port", "0", "--model", f"sd={live.folder}/sd,recipe=sd1", "--max-side", "1024")
    command = [sys.executable, "-m", "remote_vae.cli.main", "serve", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines, deadline = [], time.monotonic() + 100
        while not (lines and "to stop" in lines[-1]) and time.monotonic() < deadline:
            lines.append(process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    text = "".join(lines)
    assert (process.returncode, out, err) == (0, "", "")
    assert re.search(r"on cpu \(.+\), \d+\.\d of \d+\.\d GB free\n +decodes up to \d+x\d+ by plan ", text), text
    assert re.search(r'RemoteVAE\("http://127\.0\.0\.1:\d+/sd"\)', text), text
