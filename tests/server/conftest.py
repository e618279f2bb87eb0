"""A running server of two models that copy."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def copy(start: Any) -> Iterator[Any]:
    """Shared by the tests that leave it as it was."""
    with start("copy", "flux1") as server:
        yield server
