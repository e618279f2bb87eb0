"""Forge's extension, loaded as Forge loads it, with a VAE whose patcher has wrappers as Forge's has, against a live
server."""

import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from scripts import load_script

SCRIPT = Path(__file__).parents[2] / "integrations" / "forge" / "scripts" / "remote_vae_forge.py"


class VAE:
    """Hands its work to the wrappers of its patcher's options, as `backend.patcher.vae.VAE` does."""

    def __init__(self) -> None:
        self.patcher = SimpleNamespace(model_options={})

    def _wrapped(self, name: str, value: torch.Tensor) -> Any:
        wrapper = self.patcher.model_options.get(f"model_vae_{name}_wrapper")
        return "by itself" if wrapper is None else wrapper(lambda value: "by itself", value)

    def decode(self, latents: torch.Tensor) -> Any:
        return self._wrapped("decode", latents)

    def encode(self, pixels: torch.Tensor) -> Any:
        return self._wrapped("encode", pixels)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    parts = {"gradio": {}, "modules": {"scripts": SimpleNamespace(Script=object, AlwaysVisible=object())}}
    for name, values in parts.items():
        stand_in = ModuleType(name)
        stand_in.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, stand_in)
    return load_script(SCRIPT)


def generation(**flags: bool) -> Any:
    return SimpleNamespace(sd_model=SimpleNamespace(forge_objects=SimpleNamespace(vae=VAE()), **flags))


@pytest.mark.parametrize(("name", "channels"), [("sd", 4), ("flux", 16)])
def test_both_ways(module: Any, live: Any, name: str, channels: int) -> None:
    """Raw latents become Forge's pictures, and pictures a sample of the posterior, as with the VAE here."""
    p, here = generation(), live.modules[name]
    module.RemoteVAEForForge().process(p, True, f" {live.url} ", name)
    vae = p.sd_model.forge_objects.vae
    latents = torch.randn((3, channels, 5, 7), generator=torch.Generator().manual_seed(5))
    pixels = torch.rand((2, 40, 56, 3), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        right = ((here.decode(latents).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
        posterior = here.encode(pixels.movedim(-1, 1) * 2 - 1).latent_dist
    torch.testing.assert_close(vae.decode(latents), right, atol=1e-5, rtol=0)
    noise = (vae.encode(pixels) - posterior.mean) / posterior.std
    assert noise.shape == (2, channels, 5, 7)
    assert float(noise.std()) == pytest.approx(1, abs=0.25)


def test_it_is_switched_off(module: Any, live: Any) -> None:
    """Without the tick, and if the model is not served, Forge's own VAE does the work."""
    p, script = generation(), module.RemoteVAEForForge()
    vae = p.sd_model.forge_objects.vae
    for enabled, name in ((False, "sd"), (True, "gone")):
        script.process(p, True, live.url, "sd")
        assert vae.decode(torch.zeros(1, 4, 2, 2)).shape == (1, 16, 16, 3)
        with pytest.raises(RuntimeError, match="served are") if enabled else nullcontext():
            script.process(p, enabled, live.url, name)
        assert vae.decode(torch.zeros(1, 4, 2, 2)) == vae.encode(torch.zeros(1, 16, 16, 3)) == "by itself"


def test_what_the_server_refuses(module: Any, live: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A generation is not lost: Forge's own VAE decodes, and its console has the server's sentence."""
    p = generation()
    module.RemoteVAEForForge().process(p, True, live.url, "sd")
    assert p.sd_model.forge_objects.vae.decode(torch.zeros(1, 16, 2, 2)) == "by itself"
    assert "has 16 channels; model 'sd' takes 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "model"), [({"is_sd1": True}, "sd1"), ({"is_sd1": False, "is_sdxl": True}, "sdxl"), ({}, "flux1")]
)
def test_the_model_of_a_checkpoint(module: Any, flags: dict[str, bool], model: str) -> None:
    """An empty field means the VAE of the checkpoint's family, by Forge's flags; Flux and Chroma have none."""
    assert module.model_of(generation(**flags).sd_model) == model
