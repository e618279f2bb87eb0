"""A short run of the fuzzer; `make fuzz` is a long one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="has wheels for Linux only")

SECONDS = int(os.environ.get("FUZZ_SECONDS", "30"))
TARGETS = ("image", "container", "video", "latents", "connection", "request", "reply", "parts")
TESTS = Path(__file__).parents[1]
FUZZ = TESTS / "hostile/fuzz.py"


@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.parametrize("target", TARGETS)
def test_fuzz(target: str, tmp_path: Path) -> None:
    """Inputs bred for coverage raise nothing but the project's own errors, in little memory and time."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    options = [f"-max_total_time={SECONDS}", "-rss_limit_mb=2048", "-timeout=10", "-seed=1", "-print_final_stats=1"]
    # A shell between, because a process begins with the peak of memory of the one that starts it.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, str(FUZZ), target, *options]
    command += [f"-artifact_prefix={tmp_path}/", str(corpus)]
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 120, check=False, env=path)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert len(list(corpus.iterdir())) > len(list(corpus.glob("seed-*")))  # it found its way in
