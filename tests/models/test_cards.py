"""Loading a model onto a card, which is not here: torch's functions for cards are stood for."""

import pytest
import torch

from remote_vae.models import loader
from remote_vae.models.spec import ModelSpec

SECOND = torch.device("cuda", 1)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The model stays on the CPU. The list gets the devices that became the current one."""
    current: list[torch.device] = []
    monkeypatch.setattr(loader, "resolve_device", torch.device)
    monkeypatch.setattr(loader, "_move", lambda *words, **more: None)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def test_the_device_of_a_model_is_the_current_one(card: list[torch.device]) -> None:
    """Triton's kernels and new events go to the current device, so a model on cuda:1 makes that one current."""
    loader.load(ModelSpec("demo", device="cuda:1", random_weights=True))
    assert card == [SECOND]
    loader.load(ModelSpec("demo", device="cpu", random_weights=True))
    assert card == [SECOND]


def test_a_card_without_triton(
    card: list[torch.device], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is said, with the reason, if Triton's kernels do not run; a CPU is not asked."""
    monkeypatch.setattr(loader, "why_no_triton", lambda device: "Failed to find C compiler")
    loader.open_model(ModelSpec("demo", random_weights=True, device="cpu"), None)
    assert "Triton" not in capfd.readouterr().err
    monkeypatch.setattr(loader.DiffusersVAE, "device", SECOND)
    monkeypatch.setattr(loader.DiffusersVAE, "_laid", lambda self, stages: stages)
    loader.open_model(ModelSpec("demo", random_weights=True, device="cuda:1"), None)
    assert "(Failed to find C compiler)" in capfd.readouterr().err


def test_a_device_has_its_number() -> None:
    """Which one `auto` or `cuda` is, is said with the number; the CPU has none."""
    assert loader.resolve_device("cpu") == torch.device("cpu")
    if torch.cuda.is_available():
        assert loader.resolve_device("cuda").index is not None
