"""A server whose VAE copies, and a private authority's certificate. Each file is one kind of what people do."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.conftest import command  # noqa: F401  # a fixture
from client.conftest import answers, serve  # noqa: F401  # fixtures


@pytest.fixture(scope="session")
def copy(start: Any) -> Iterator[Any]:
    with start("copy") as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of this machine, signed by itself."""
    folder = tmp_path_factory.mktemp("authority")
    files = (folder / "certificate.pem", folder / "key.pem")
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run([*request.split(), *names], check=True, capture_output=True)
    return files
