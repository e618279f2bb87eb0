"""InvokeAI's nodes, imported as InvokeAI imports a pack and run against a live server."""

import sys
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scripts import load_script

FOLDER = Path(__file__).parents[2] / "integrations" / "invokeai"


class Node:
    """Takes values for the fields that the class declares, with the defaults of InputField."""

    def __init__(self, **values: Any) -> None:
        for name in type(self).__annotations__:
            setattr(self, name, values.pop(name) if name in values else getattr(type(self), name)["default"])
        assert values == {}


class Context:
    """What a node is given: tensors and images by name."""

    def __init__(self, **kept: Any) -> None:
        self.kept = kept
        self.progress: list[str] = []
        self.tensors = SimpleNamespace(load=kept.__getitem__, save=lambda tensor: self._keep("a tensor", tensor))
        self.images = SimpleNamespace(get_pil=kept.__getitem__, save=lambda image: self._keep("an image", image))
        self.util = SimpleNamespace(signal_progress=self.progress.append)

    def _keep(self, name: str, value: Any) -> str:
        self.kept[name] = value
        return name


def built(**values: Any) -> Any:
    return SimpleNamespace(build=lambda *unnamed, **named: (*unnamed, named), **values)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pack, beside a module with the names of InvokeAI's interface for packs."""
    known: dict[str, Any] = {}

    def invocation(kind: str, **about: Any) -> Any:
        assert {"title", "tags", "category", "version", "bottleneck"} == set(about)
        return lambda cls: known.setdefault(kind, cls)

    api = ModuleType("invokeai.invocation_api")
    api.__dict__.update(
        BaseInvocation=Node,
        WithBoard=type("WithBoard", (), {}),
        WithMetadata=type("WithMetadata", (), {}),
        Bottleneck=Enum("Bottleneck", ["Network", "GPU"]),
        Input=Enum("Input", ["Connection"]),
        FieldDescriptions=SimpleNamespace(latents="Latents tensor"),
        InputField=lambda **about: about,
        **dict.fromkeys(("ImageField", "LatentsField", "InvocationContext"), object),
        **dict.fromkeys(("ImageOutput", "LatentsOutput"), built()),
        invocation=invocation,
    )
    monkeypatch.setitem(sys.modules, "invokeai", ModuleType("invokeai"))
    monkeypatch.setitem(sys.modules, "invokeai.invocation_api", api)
    load_script(FOLDER / "__init__.py", "remote-vae-nodes")
    assert sorted(known) == ["remote_vae_i2l", "remote_vae_l2i"]
    return SimpleNamespace(decode=known["remote_vae_l2i"], encode=known["remote_vae_i2l"])


@pytest.mark.parametrize(("name", "channels"), [("sd", 4), ("flux", 16)])
def test_decode(nodes: Any, live: Any, name: str, channels: int) -> None:
    """A sampler's latents, normalised and in half precision, become the picture that InvokeAI's own node makes."""
    latents = torch.randn((1, channels, 5, 7), generator=torch.Generator().manual_seed(3)).half()
    context, module = Context(there=latents), live.modules[name]
    node = nodes.decode(latents=SimpleNamespace(latents_name="there"), url=live.url, model=name)
    assert node.invoke(context) == ("an image", {})
    with torch.no_grad():
        raw = latents.float() / module.config.scaling_factor + (module.config.shift_factor or 0)
        right = ((module.decode(raw).sample[0] + 1) * 127.5).clamp(0, 255).movedim(0, -1).numpy()
    assert np.abs(np.asarray(context.kept["an image"]) - right).max() < 1
    assert context.progress == ["Decoding on the server"]


def test_a_batch_is_refused(nodes: Any) -> None:
    """The node makes one image, so it refuses a batch of several latents before it asks the server."""
    node = nodes.decode(latents=SimpleNamespace(latents_name="there"), url="http://127.0.0.1:9", model="sd")
    with pytest.raises(ValueError, match="the batch has 2 latents, and this node makes one image"):
        node.invoke(Context(there=torch.zeros(2, 4, 5, 7)))


@pytest.mark.parametrize(("name", "channels"), [("sd", 4), ("flux", 16)])
def test_encode(nodes: Any, live: Any, name: str, channels: int) -> None:
    """A picture of any size and mode becomes a sample of the posterior, normalised, on InvokeAI's grid of 8 pixels."""
    noise = np.random.default_rng(4).integers(0, 255, (43, 61, 4), dtype=np.uint8)
    context, module = Context(there=Image.fromarray(noise)), live.modules[name]
    node = nodes.encode(image=SimpleNamespace(image_name="there"), url=live.url, model=name, seed=7)
    found = node.invoke(context)[0]
    latents = found["latents"]
    assert found["seed"] == 7
    assert latents is context.kept[found["latents_name"]]
    assert latents.shape == (1, channels, 5, 7)
    small = Image.fromarray(noise).convert("RGB").resize((56, 40), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(small).copy()).movedim(-1, 0)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = module.encode(pixels).latent_dist
    raw = latents / module.config.scaling_factor + (module.config.shift_factor or 0)
    assert float(((raw - posterior.mean) / posterior.std).abs().max()) < 6
    assert float(((raw - posterior.mean) / posterior.std).std()) == pytest.approx(1, abs=0.25)


def test_no_key_in_a_workflow(nodes: Any) -> None:
    """A node has no field for a key, since InvokeAI writes the fields of all nodes into its images."""
    assert not [name for cls in vars(nodes).values() for name in cls.__annotations__ if "key" in name]
