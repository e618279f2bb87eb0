"""The nodes as a product of their own: what is published, its help and its examples; and what it logs and sends."""

import json
import logging
import re
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from remote_vae.errors import RemoteVAEError

from .running import FOLDER, execute, load, noise

ROOT = FOLDER.parents[1]
WORKFLOWS = sorted((FOLDER / "example_workflows").glob("*.json"))
ADDRESS = "https://git.example/somebody/remote-vae"
# ComfyUI's own nodes, with the kinds of their outputs.
THEIRS = {
    "CheckpointLoaderSimple": ["MODEL", "CLIP", "VAE"],
    "CLIPTextEncode": ["CONDITIONING"],
    "EmptyLatentImage": ["LATENT"],
    "KSampler": ["LATENT"],
    "LoadImage": ["IMAGE", "MASK"],
    "VAEDecode": ["IMAGE"],
    "VAEEncode": ["LATENT"],
    "SaveImage": [],
}
SOCKETS = ("LATENT", "IMAGE", "VAE")


@pytest.fixture(scope="module")
def module(live: Any) -> Iterator[ModuleType]:
    before = list(logging.getLogger().filters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REMOTE_VAE_ENDPOINT", live.url)
        patch.delenv("REMOTE_VAE_API_KEY", raising=False)
        yield load("custom_nodes_remote_vae_pack")
    logging.getLogger().filters[:] = before
    logging.getLogger("httpx2").setLevel(logging.NOTSET)


def test_the_published_folder(tmp_path: Path) -> None:
    """It has all that ComfyUI's registry asks for, no address is left to be filled in, and pip gets a source."""
    folder, script = tmp_path / "out", ROOT / "integrations" / "publish_comfyui.py"
    subprocess.run([sys.executable, script, ADDRESS, "somebody", folder], check=True)
    document = tomllib.loads((folder / "pyproject.toml").read_text())
    project, comfy = document["project"], document["tool"]["comfy"]
    assert (comfy["PublisherId"], comfy["DisplayName"]) == ("somebody", "Remote VAE")
    assert project["urls"]["Repository"] == ADDRESS
    assert re.fullmatch(r"[a-z][a-z-]{2,99}", project["name"])
    assert project["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    needed = [line for line in (folder / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert needed == project["dependencies"]
    for line in needed:
        found = Requirement(line)
        assert re.fullmatch(rf"git\+{re.escape(ADDRESS)}@[0-9a-f]{{40}}", found.url or "")
    for path in folder.glob("*.*"):
        assert not re.search(r"repository\.invalid|publisher-invalid", path.read_text())
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert not list(folder.rglob("__pycache__"))


@pytest.mark.parametrize("address", ["http://a.example/b", "https://key@a.example/b", "https://a.example/b/", "a b"])
def test_an_address_that_is_no_source(address: str, tmp_path: Path) -> None:
    """An address with a key, or one from which pip cannot install, is refused before anything is written."""
    script = ROOT / "integrations" / "publish_comfyui.py"
    command = [sys.executable, script, address, "somebody", tmp_path / "out"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert "must be the https address" in found.stderr
    assert not (tmp_path / "out").exists()


def test_every_node_has_help(module: ModuleType) -> None:
    """ComfyUI shows a page for each node, which names each of its inputs."""
    for name, cls in module.NODE_CLASS_MAPPINGS.items():
        text = (FOLDER / module.WEB_DIRECTORY / "docs" / f"{name}.md").read_text()
        assert text.startswith(f"# {module.NODE_DISPLAY_NAME_MAPPINGS[name]}\n")
        inputs = cls.INPUT_TYPES()
        for each in (*inputs["required"], *inputs["optional"]):
            assert f"**{each}**" in text, (name, each)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_example_workflows(path: Path, module: ModuleType) -> None:
    """Each link joins two sockets of one kind, and our nodes have a value for each widget, in their order."""
    document = json.loads(path.read_text())
    nodes = {node["id"]: node for node in document["nodes"]}
    kinds = {name: list(cls.RETURN_TYPES) for name, cls in module.NODE_CLASS_MAPPINGS.items()} | THEIRS
    assert document["last_node_id"] == max(nodes)
    assert document["last_link_id"] == max(link[0] for link in document["links"])
    for number, source, out, target, into, kind in document["links"]:
        assert kinds[nodes[source]["type"]][out] == kind == nodes[target]["inputs"][into]["type"]
        assert number in nodes[source]["outputs"][out]["links"]
        assert nodes[target]["inputs"][into]["link"] == number
    assert any(node["type"] in module.NODE_CLASS_MAPPINGS for node in nodes.values())
    for node in nodes.values():
        assert [each["type"] for each in node["outputs"]] == kinds[node["type"]]
        if node["type"] not in THEIRS:
            inputs = module.NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()
            every = {**inputs["required"], **inputs["optional"]}
            assert [each["name"] for each in node["inputs"]] == [n for n, row in every.items() if row[0] in SOCKETS]
            widgets = {name: row for name, row in every.items() if row[0] not in SOCKETS}
            for value, (name, row) in zip(node["widgets_values"], widgets.items(), strict=True):
                assert name == "url" or value == row[1].get("default", row[0][0])


def test_no_key_in_a_log(module: ModuleType, live: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A key in an address, wherever it stands, is neither logged nor in an error, although ComfyUI logs at INFO."""
    caplog.set_level(logging.INFO)
    check = module.NODE_CLASS_MAPPINGS["RemoteVAELoader"].VALIDATE_INPUTS
    host = live.url.removeprefix("http://")
    said = check(f"http://me:a-secret@{host}/?key=a-secret", "sdxl")
    with pytest.raises(RemoteVAEError) as other:
        execute_at(module, f"http://me:a-secret@{host}/?key=a-secret", "sdxl")
    execute_at(module, f"http://me:a-secret@{host}", "sd")
    shown = sys.modules[f"{module.__name__}.logs"].host_of("https://me:a-secret@host:1/a-secret?key=a-secret")
    assert shown == "https://host:1"
    assert "does not serve" in said
    for text in (said, str(other.value), caplog.text):
        assert "a-secret" not in text


def execute_at(module: ModuleType, url: str, model: str) -> Any:
    return module.NODE_CLASS_MAPPINGS["RemoteVAEDecode"]().run({"samples": noise(1, 4, 4, 4)}, url, model)


def test_a_known_error_is_one_line_of_the_log(module: ModuleType, live: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Of an error with a sentence of its own ComfyUI's log has that sentence; any other keeps its traceback."""

    def logged(error: Exception) -> list[str]:
        caplog.clear()
        try:
            raise error
        except Exception as exc:  # noqa: BLE001  # as ComfyUI's executor does it
            logging.error("!!! Exception during processing !!! %s", exc)
            logging.error(traceback.format_exc())
        return [record.getMessage().partition("\n")[0] for record in caplog.records]

    with pytest.raises(RemoteVAEError) as known:
        execute_at(module, live.url, "sdxl")
    assert logged(known.value) == [f"!!! Exception during processing !!! {known.value}"]
    assert len(logged(KeyError("a fault of ours"))) == 2


def test_half_precision_on_the_wire(module: ModuleType, live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents for a model in half precision travel in it, and those for another model as they are."""
    nodes, sent = sys.modules[f"{module.__name__}.nodes"], []
    remote = nodes.open_model(live.url, "sd", "")
    decode = type(remote).decode
    monkeypatch.setattr(
        type(remote), "decode", lambda self, latent, **how: sent.append(latent) or decode(self, latent, **how)
    )
    latent, pictures = noise(1, 4, 6, 10), {}
    for dtype in ("float32", "bfloat16", "float16"):
        remote.card["dtype"] = dtype
        pictures[dtype] = nodes.RemoteComfyVAE(remote).decode(latent)
    assert [each.dtype for each in sent] == [torch.float32, torch.bfloat16, torch.float16]
    for dtype in ("bfloat16", "float16"):
        torch.testing.assert_close(pictures[dtype], pictures["float32"], atol=0.02, rtol=0)


def test_flux_in_sides_that_are_no_multiples_of_16(module: ModuleType, live: Any) -> None:
    """1080 lines are 135 cells of FLUX.1, which its pipelines could not pack; ComfyUI decodes them, and so do we."""
    latent = noise(1, 16, 5, 7)
    (found,) = execute(module, "RemoteVAEDecode", samples={"samples": latent}, url=live.url, model="flux")
    with torch.no_grad():
        expected = ((live.modules["flux"].decode(latent).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
    assert found.shape == (1, 40, 56, 3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    (encoded,) = execute(module, "RemoteVAEEncode", pixels=found, url=live.url, model="flux")
    assert encoded["samples"].shape == latent.shape


def test_batches_go_in_parts(module: ModuleType, live: Any) -> None:
    """More pictures than the server takes at once, as AnimateDiff makes them, come back as one batch, both ways."""
    latent = noise(19, 4, 2, 3)
    nodes = sys.modules[f"{module.__name__}.nodes"]
    assert len(latent) > nodes.open_model(live.url, "sd", "").card["limits"]["max_batch"]
    (found,) = execute(module, "RemoteVAEDecode", samples={"samples": latent}, url=live.url, model="sd")
    for place in (0, 18):
        (one,) = execute(
            module, "RemoteVAEDecode", samples={"samples": latent[place : place + 1]}, url=live.url, model="sd"
        )
        torch.testing.assert_close(found[place : place + 1], one, atol=1e-5, rtol=0)
    (encoded,) = execute(module, "RemoteVAEEncode", pixels=found, url=live.url, model="sd")
    assert encoded["samples"].shape == latent.shape
