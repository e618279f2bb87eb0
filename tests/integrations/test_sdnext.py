"""SD.Next's extension, loaded as SD.Next loads it, beside modules of the shape that SD.Next's have."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import torch
from PIL import Image

from scripts import load_script

SCRIPT = Path(__file__).parents[2] / "integrations" / "sdnext" / "scripts" / "remote_vae_server.py"
SD, SDXL = ("sd", "pixartalpha"), ("sdxl", "pixartsigma", "hunyuandit", "auraflow", "omnigen")
FLUX, VIDEO = ("f1", "h1", "chroma", "zimage", "lumina2"), ("hunyuanvideo",)
SHAPES = {"f1": (1, 16, 64), "hunyuanvideo": (1, 16, 2, 4, 4)}  # of latents that are not grids
HERE = "http://127.0.0.1:8000"


def table(*groups: tuple[str, ...]) -> dict[str, str]:
    """Names that share one address of a stranger for each group."""
    return {name: f"https://{id(group)}.stranger.example" for group in groups for name in group}


class Options:
    """SD.Next's settings: those whose name ends with _key are kept apart, and a change calls the option's function."""

    def __init__(self) -> None:
        self.labels: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.secrets: dict[str, Any] = {}

    def add_option(self, name: str, option: Any) -> None:
        self.labels[name] = option

    def get(self, name: str) -> Any:
        return {**self.data, **self.secrets}.get(name, self.labels[name].default)

    def set(self, name: str, value: Any) -> None:
        (self.secrets if name.endswith("_key") else self.data)[name] = value
        self.labels[name].onchange()


class Option(SimpleNamespace):
    def __init__(self, default: Any, label: str, *, section: tuple[str, str], onchange: Callable[[], None]) -> None:
        super().__init__(default=default, label=label, section=section, onchange=onchange)


class SDNext:
    """The parts of SD.Next that the extension touches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.options = Options()
        self.decode, self.encode = table(SD, SDXL, FLUX, VIDEO), table(SD, SDXL, FLUX)
        self.framepack = SimpleNamespace(vae_decode_remote=None)
        remote = SimpleNamespace(hf_decode_endpoints=self.decode, hf_encode_endpoints=self.encode)
        self.said: list[str] = []
        log = SimpleNamespace(info=self.said.append, warning=self.said.append)
        parts = {
            "modules": {"shared": SimpleNamespace(opts=self.options, OptionInfo=Option)},
            "modules.framepack": {"framepack_vae": self.framepack},
            "modules.logger": {"log": log},
            "modules.vae": {"sd_vae_remote": remote},
        }
        for name, values in parts.items():
            module = ModuleType(name)
            module.__dict__.update(values)
            monkeypatch.setitem(sys.modules, name, module)

    def load(self) -> Any:
        return load_script(SCRIPT)

    @property
    def addresses(self) -> list[str]:
        return [*self.decode.values(), *self.encode.values()]


@pytest.fixture
def sdnext(monkeypatch: pytest.MonkeyPatch) -> SDNext:
    return SDNext(monkeypatch)


def test_every_address_is_here(sdnext: SDNext) -> None:
    """All 25 addresses become models of the server, each that whose address the name had shared."""
    sdnext.load()
    assert {urlsplit(address).netloc for address in sdnext.addresses} == {"127.0.0.1:8000"}
    found = Counter(urlsplit(address).path for address in sdnext.addresses)
    assert found == {"/sd1": 4, "/sdxl": 10, "/flux1": 10, "/hunyuanvideo": 1}
    for names, model in ((SD, "sd1"), (SDXL, "sdxl"), (FLUX, "flux1")):
        assert {t[name] for t in (sdnext.decode, sdnext.encode) for name in names} == {f"{HERE}/{model}"}


def test_settings_are_followed(sdnext: SDNext) -> None:
    """A changed URL or key is in every address at once, a key's odd characters too; the key is among the secrets."""
    sdnext.load()
    sdnext.options.set("remote_vae_url", "https://box.example/vae/ ")
    assert sdnext.decode["zimage"] == "https://box.example/vae/flux1"
    sdnext.options.set("remote_vae_key", "a/key@with:signs")
    assert sdnext.encode["zimage"] == "https://box.example/vae/a%2Fkey%40with%3Asigns/flux1"
    assert sdnext.options.secrets == {"remote_vae_key": "a/key@with:signs"}
    sdnext.options.set("remote_vae_url", "")
    assert not [address for address in sdnext.addresses if urlsplit(address).netloc]
    sdnext.options.set("remote_vae_url", HERE)
    sdnext.options.set("remote_vae_key", "")
    assert sdnext.encode["zimage"] == f"{HERE}/flux1"


def test_names_of_a_later_sdnext(sdnext: SDNext) -> None:
    """A further name goes to the model whose address it shares; one with an address of its own is sent nowhere."""
    sdnext.decode["boogu"] = sdnext.decode["f1"]
    sdnext.decode["wanai"] = "https://another.stranger.example"
    sdnext.load()
    assert sdnext.decode["boogu"] == f"{HERE}/flux1"
    assert "wanai" not in sdnext.decode
    assert any("wanai" in line for line in sdnext.said)


def test_a_restart_of_its_page(sdnext: SDNext) -> None:
    """SD.Next runs its scripts again when its page restarts, with the addresses as they are at that time."""
    sdnext.load()
    sdnext.options.set("remote_vae_url", "http://box:8000")
    before = sdnext.addresses
    sdnext.load()
    assert sdnext.addresses == before


@pytest.mark.filterwarnings("ignore:.*do_scaling.*is deprecated")
def test_sdnexts_calls(sdnext: SDNext, live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every address answers the call that SD.Next makes of it, with pixels and latents of the right size."""
    from diffusers.utils.remote_utils import remote_encode

    module = sdnext.load()
    monkeypatch.setattr(module, "MODELS", {"sd": "sd", "sdxl": "sd", "f1": "flux", "hunyuanvideo": "video"})
    sdnext.decode.update(table(SD, SDXL, FLUX, VIDEO))
    sdnext.encode.update(table(SD, SDXL, FLUX))
    sdnext.options.set("remote_vae_url", live.url)
    raw = {"input_tensor_type": "binary", "output_type": "pt", "output_tensor_type": "binary", "dtype": "float16"}
    for name, address in sdnext.decode.items():
        shape = SHAPES.get(name, (1, 16 if name in FLUX else 4, 8, 8))
        sides = {"width": 64, "height": 64} if name in FLUX else {}
        query = {**raw, **sides, "partial_postprocess": False, "shape": list(shape), "scaling_factor": 0.5}
        head = {"Content-Type": "tensor/binary", "Accept": "tensor/binary"}
        body = torch.zeros(shape, dtype=torch.float16).numpy().tobytes()
        reply = requests.post(address, params=query, data=body, headers=head, timeout=60)
        assert reply.status_code == 200, (name, reply.text)
        assert reply.headers["shape"] == ("[1, 3, 5, 32, 32]" if name in VIDEO else "[1, 3, 64, 64]"), name
    for name, address in sdnext.encode.items():
        latent = remote_encode(endpoint=address, image=Image.new("RGB", (64, 48)), scaling_factor=0.5)
        assert latent.shape == (1, 16 if name in FLUX else 4, 6, 8)
    frames = sdnext.framepack.vae_decode_remote(torch.zeros(1, 16, 2, 4, 4))
    assert frames.shape == (1, 3, 5, 32, 32)
