"""The same algorithms and the same numbers on every machine."""

import pytest
import torch

from remote_vae.core import winograd


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Inputs that do not depend on the tests before: some differences come within a fifth of what is allowed."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without wide vectors, on which fewer products are worth recombining for."""
    monkeypatch.setattr(winograd, "vectors_are_wide", lambda: False)
