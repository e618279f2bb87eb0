"""The same algorithms on every machine."""

import pytest

from remote_vae.core import winograd


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without wide vectors, on which fewer products are worth recombining for."""
    monkeypatch.setattr(winograd, "vectors_are_wide", lambda: False)
