"""A running server of two models that copy."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def copy(start: Any) -> Iterator[Any]:
    """Shared by the tests that leave it as it was."""
    with start("copy", "flux1") as server:
        yield server


@pytest.fixture
def free_address() -> tuple[str, int]:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    return f"http://127.0.0.1:{port}", port
