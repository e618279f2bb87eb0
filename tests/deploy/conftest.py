"""The command line on Ray Serve."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

Serve = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def serve() -> Serve:
    """`remote-vae serve --ray` with these words, until it ends by itself."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "remote_vae.cli.main", "serve", "--ray", *arguments]
        env = {**os.environ, "COLUMNS": "400", "NO_COLOR": "1"}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280, check=False)

    return run
