"""A running server of two models that copy."""

from collections.abc import Iterator
from typing import Any

import pytest

from ports import free_port


@pytest.fixture(scope="session")
def copy(start: Any) -> Iterator[Any]:
    """Shared by the tests that leave it as it was."""
    with start("copy", "flux1") as server:
        yield server


@pytest.fixture
def free_address() -> tuple[str, int]:
    """Where nobody listens."""
    port = free_port()
    return f"http://127.0.0.1:{port}", port
