"""The ComfyUI nodes by ComfyUI's contract: loaded as it loads them, run as it runs them, against a live server."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from remote_vae.client.model import RemoteModel
from remote_vae.errors import ConnectionFailed, LatentMismatch, UnknownModel

from .running import FOLDER, execute, load, noise

FIRST = "the server's first"


@pytest.fixture(scope="module")
def module(live: Any) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REMOTE_VAE_ENDPOINT", live.url)
        patch.delenv("REMOTE_VAE_API_KEY", raising=False)
        yield load("custom_nodes_remote_vae")


def picture(batch: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.rand((batch, height, width, channels), generator=torch.Generator().manual_seed(8))


def local(live: Any, name: str, latent: torch.Tensor) -> torch.Tensor:
    """What ComfyUI would show of a raw latent with the VAE here."""
    with torch.no_grad():
        pixels = live.modules[name].decode(latent.float()).sample
    return ((pixels + 1) / 2).clamp(0, 1).movedim(1, -1)


def mode(live: Any, name: str, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return live.modules[name].encode(pixels * 2 - 1).latent_dist.mode()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("name", "channels"), [("sd", 4), ("flux", 16)])
def test_decode(module: ModuleType, live: Any, name: str, channels: int, dtype: torch.dtype) -> None:
    """A sampler's raw latents, in bfloat16 too, become the pictures that the VAE gives here."""
    latent = noise(2, channels, 6, 10).to(dtype)
    (found,) = execute(module, "RemoteVAEDecode", samples={"samples": latent}, url=live.url, model=name)
    torch.testing.assert_close(found, local(live, name, latent), atol=1e-5, rtol=0)


def test_transparency(module: ModuleType, live: Any) -> None:
    """A model of four channels gets an opaque picture of three, and one of three channels no fourth."""
    pixels = picture(2, 48, 80, channels=4)
    vae = sys.modules[f"{module.__name__}.vae"].RemoteComfyVAE(RemoteModel(f"{live.url}/sd"))
    assert vae.output_channels == 3
    assert torch.equal(vae._with_channels(pixels), pixels[..., :3])
    vae.output_channels = 4
    assert torch.equal(vae._with_channels(pixels), pixels)
    opaque = torch.cat([pixels[..., :3], torch.ones(2, 48, 80, 1)], dim=-1)
    assert torch.equal(vae._with_channels(pixels[..., :3]), opaque)


def test_decode_of_a_large_picture_is_not_tiled(module: ModuleType, live: Any) -> None:
    """A picture far above a tile's size has no seams: it is the one of the VAE as a whole."""
    latent = noise(1, 4, 96, 96)
    (found,) = execute(module, "RemoteVAEDecode", samples={"samples": latent}, url=live.url, model=FIRST)
    torch.testing.assert_close(found, local(live, "sd", latent), atol=1e-5, rtol=0)


def test_decode_of_a_video(module: ModuleType, live: Any) -> None:
    """Both nodes give a video's frames as a batch, one as floats and one in eight bits."""
    latent = noise(1, 16, 3, 4, 6)
    expected = local(live, "video", latent)[0]
    assert expected.shape == (9, 32, 48, 3)
    inputs = {"samples": {"samples": latent}, "url": live.url, "model": "video"}
    (floats,) = execute(module, "RemoteVAEDecode", **inputs)
    torch.testing.assert_close(floats, expected, atol=1e-5, rtol=0)
    (levels,) = execute(module, "RemoteVAEDecodeVideo", **inputs)
    torch.testing.assert_close(levels, expected, atol=0.5 / 255 + 1e-5, rtol=0)
    with pytest.raises(LatentMismatch, match="'sd' gives pictures; take Remote VAE Decode"):
        execute(module, "RemoteVAEDecodeVideo", **{**inputs, "model": "sd"})


@pytest.mark.parametrize("channels", [3, 4])
def test_encode(module: ModuleType, live: Any, channels: int) -> None:
    """Pictures, with an alpha channel or not, become the raw latent's mode, of the middle in whole cells."""
    pixels = picture(2, 53, 70, channels)
    (found,) = execute(module, "RemoteVAEEncode", pixels=pixels, url=live.url, model="sd")
    expected = mode(live, "sd", pixels[:, 2:50, 3:67, :3].movedim(-1, 1))
    torch.testing.assert_close(found["samples"], expected, atol=1e-5, rtol=0)


def test_encode_of_a_video(module: ModuleType, live: Any) -> None:
    """A video model takes the batch for frames."""
    pixels = picture(9, 32, 48)
    (found,) = execute(module, "RemoteVAEEncode", pixels=pixels, url=live.url, model="video")
    expected = mode(live, "video", pixels.movedim(-1, 0)[None])
    assert found["samples"].shape == (1, 16, 3, 4, 6)
    torch.testing.assert_close(found["samples"], expected, atol=1e-5, rtol=0)


def test_the_loaded_vae_has_the_face_of_comfyuis(module: ModuleType, live: Any) -> None:
    """Other nodes may decode, encode, with tiles or not, ask for ratios, and call the bare model in it."""
    (vae,) = execute(module, "RemoteVAELoader", url=live.url, model="sd")
    latent, pixels = noise(1, 4, 6, 10), picture(1, 48, 80)
    assert torch.equal(vae.decode_tiled(latent, tile_x=64, tile_y=64, overlap=16), vae.decode(latent))
    assert torch.equal(vae.encode_tiled(pixels, tile_x=512, tile_y=512, overlap=64), vae.encode(pixels))
    raw = vae.first_stage_model.to(torch.float16).eval().decode(latent)
    torch.testing.assert_close(vae.process_output(raw).movedim(1, -1), vae.decode(latent))
    bare = vae.first_stage_model.encode(vae.process_input(pixels).movedim(-1, 1))
    torch.testing.assert_close(bare, vae.encode(pixels), atol=1e-5, rtol=0)
    assert (vae.downscale_ratio, vae.upscale_ratio, vae.latent_channels, vae.latent_dim) == (8, 8, 4, 2)
    assert (vae.spacial_compression_encode(), vae.spacial_compression_decode()) == (8, 8)
    assert vae.temporal_compression_decode() is None
    assert vae.memory_used_decode(latent.shape, torch.float32) == vae.memory_used_encode(pixels.shape, None) == 0
    with pytest.raises(LatentMismatch, match="on the server"):
        vae.get_sd()


def test_the_loaded_video_vae(module: ModuleType, live: Any) -> None:
    """Its ratios are functions of frames, as those of ComfyUI's video VAEs are."""
    (vae,) = execute(module, "RemoteVAELoader", url=live.url, model="video")
    assert (vae.latent_channels, vae.latent_dim, vae.temporal_compression_decode()) == (16, 3, 4)
    assert [vae.upscale_ratio[0](frames) for frames in (0, 1, 3)] == [0, 1, 9]
    assert [vae.downscale_ratio[0](frames) for frames in (0, 1, 9)] == [0, 1, 3]
    assert vae.upscale_index_formula == vae.downscale_index_formula == (4, 8, 8)
    assert vae.decode(noise(1, 16, 2, 4, 6)).shape == (1, 5, 32, 48, 3)


def test_the_drop_down_shows_what_is_served(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node offers the models of the server at REMOTE_VAE_ENDPOINT, and its address."""
    nodes = sys.modules[f"{module.__name__}.nodes"]
    monkeypatch.setattr(nodes, "PROBE_SECONDS", 60.0)  # on a busy machine too
    nodes._listed.clear()
    assert nodes.list_models(nodes.DEFAULT_URL) == ["sd", "flux", "video"]
    for cls in module.NODE_CLASS_MAPPINGS.values():
        required = cls.INPUT_TYPES()["required"]
        assert required["model"][0] == [FIRST, "sd", "flux", "video"]
        assert required["url"][1]["default"].startswith("http://127.0.0.1:")
    assert set(module.NODE_DISPLAY_NAME_MAPPINGS) == set(module.NODE_CLASS_MAPPINGS)


def test_errors_before_anything_runs(module: ModuleType, live: Any) -> None:
    """A server that is not there, and a model that is not served, are told at the node, with what to do."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gone = f"http://127.0.0.1:{listener.getsockname()[1]}"
    check = module.NODE_CLASS_MAPPINGS["RemoteVAELoader"].VALIDATE_INPUTS
    assert "does the server run" in check(gone, FIRST)
    assert "does not serve model 'sdxl'; it serves sd, flux, video" in check(live.url, "sdxl")
    assert "not an http or https URL" in check("nonsense", FIRST)
    assert check(model="sdxl") is check(url=gone) is True  # the other one is made by a node
    node = module.NODE_CLASS_MAPPINGS["RemoteVAEDecode"]()
    with pytest.raises(ConnectionFailed, match="does the server run"):
        node.run({"samples": noise(1, 4, 4, 4)}, gone, FIRST)
    with pytest.raises(UnknownModel, match="served are sd, flux, video"):
        node.run({"samples": noise(1, 4, 4, 4)}, live.url, "sdxl")
    with pytest.raises(LatentMismatch, match=r"16 channels.*'sd'.*takes 4"):
        node.run({"samples": noise(1, 16, 4, 4)}, live.url, "sd")


def test_a_picture_of_1080_lines(module: ModuleType, live: Any) -> None:
    """A picture is encoded in cells, as ComfyUI's own VAE does it, whatever the model's pipelines take as one."""
    found = module.NODE_CLASS_MAPPINGS["RemoteVAEEncode"]().run(picture(1, 40, 64), live.url, "flux")[0]["samples"]
    with torch.no_grad():
        pixels = picture(1, 40, 64).movedim(-1, 1) * 2 - 1
        expected = live.modules["flux"].encode(pixels).latent_dist.mode()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_token_comes_from_the_environment(start: Any, live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with keys is used with REMOTE_VAE_API_KEY, which no workflow contains; without it the node says so."""
    key = "a-key-for-the-workflows-1"
    module = load("custom_nodes_remote_vae_with_a_key")
    check = module.NODE_CLASS_MAPPINGS["RemoteVAELoader"].VALIDATE_INPUTS
    with start("copy", keys=key) as server:
        monkeypatch.delenv("REMOTE_VAE_API_KEY", raising=False)
        assert "key" in check(server.url, FIRST)
        monkeypatch.setenv("REMOTE_VAE_API_KEY", key)
        assert check(f"{server.url}/", FIRST) is True


def test_the_nodes_need_no_diffusers() -> None:
    """A fresh interpreter that loads the nodes has not loaded diffusers, nor ComfyUI."""
    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER.parent)!r})\n"
        "import comfyui.nodes, comfyui.vae\n"
        "print(*sorted({'diffusers', 'transformers', 'comfy', 'nodes'} & set(sys.modules)))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ""
