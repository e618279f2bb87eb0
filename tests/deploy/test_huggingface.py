"""The handler for Hugging Face Inference Endpoints, under the contract of the toolkit that calls it."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from remote_vae.deploy.huggingface import EndpointHandler
from remote_vae.errors import ConfigurationError, LatentMismatch, ModelLoadError
from scripts import load_script

HERE = Path(__file__).parent
SHIPPED = HERE.parent.parent / "deploy" / "huggingface"
TINY = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
LATENT = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 4, 8, 8)
P0 = {"shape": [1, 4, 8, 8], "dtype": "float32"}


def toolkit() -> ModuleType:
    return load_script(HERE / "toolkit.py")


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(7)
    return AutoencoderKL(**TINY, latent_channels=4, scaling_factor=0.31).eval()


@pytest.fixture(scope="module")
def handler(vae: AutoencoderKL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EndpointHandler]:
    """Of a pipeline's repository: the VAE is in its subfolder, the shipped handler.py beside it."""
    folder = tmp_path_factory.mktemp("repository")
    vae.save_pretrained(folder / "vae")
    shutil.copy(SHIPPED / "handler.py", folder)
    found = toolkit().load_handler(folder)
    yield found
    found.close()


@pytest.fixture
def endpoint(handler: EndpointHandler) -> Any:
    """Asks the endpoint: `ask(body, query, **headers)`."""
    app = toolkit().build(handler)

    async def ask(body: object, query: str = "", **headers: str) -> httpx2.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **{name.replace("_", "-"): v for name, v in headers.items()}}
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://endpoint") as http:
            return await http.post("/?" + query, content=content, headers=headers, timeout=60)

    return ask


def in_base64(latent: np.ndarray = LATENT) -> str:
    return base64.b64encode(latent.tobytes()).decode()


def tensor_of(reply: httpx2.Response) -> np.ndarray:
    found = reply.json()
    raw = base64.b64decode(found["inputs"])
    return np.frombuffer(raw, found["parameters"]["dtype"]).reshape(found["parameters"]["shape"])


def decoded(vae: AutoencoderKL, scale: float) -> np.ndarray:
    with torch.no_grad():
        return vae.decode(torch.from_numpy(LATENT) / scale).sample.numpy()


async def test_the_first_clients_body(endpoint: Any, vae: AutoencoderKL) -> None:
    """A P0 body gives the tensor that diffusers gives, scaled by the model's own factor."""
    reply = await endpoint({"inputs": in_base64(), "parameters": {**P0, "output_type": "pt"}})
    assert reply.status_code == 200
    np.testing.assert_allclose(tensor_of(reply), decoded(vae, 0.31), atol=1e-5)


async def test_parameters_in_the_query(endpoint: Any, vae: AutoencoderKL) -> None:
    """A base64 body whose parameters are in the query gives the same; the shape has to be one value there."""
    query = "shape=1,4,8,8&dtype=float32&output_type=pt&scaling_factor=0.5"
    reply = await endpoint({"inputs": in_base64()}, query)
    np.testing.assert_allclose(tensor_of(reply), decoded(vae, 0.5), atol=1e-5)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
async def test_a_picture(endpoint: Any, vae: AutoencoderKL, kind: str) -> None:
    """Accept names the picture's form, which the toolkit writes."""
    reply = await endpoint({"inputs": in_base64(), "parameters": P0}, accept=f"image/{kind}")
    found = np.asarray(Image.open(io.BytesIO(reply.content)), np.float32)
    expected = (decoded(vae, 0.31)[0].transpose(1, 2, 0) / 2 + 0.5).clip(0, 1) * 255
    assert reply.headers["content-type"] == f"image/{kind}"
    assert np.abs(found - expected).mean() < (0.6 if kind == "png" else 12)


async def test_a_picture_in_json(endpoint: Any) -> None:
    """Without an Accept header a picture is PNG in base64."""
    reply = await endpoint({"inputs": in_base64(), "parameters": P0})
    assert Image.open(io.BytesIO(base64.b64decode(reply.json()))).size == (64, 64)


async def test_encoding(endpoint: Any, vae: AutoencoderKL) -> None:
    """A picture is encoded, into JSON."""
    pixels = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    reply = await endpoint(out.getvalue(), "posterior=mode", content_type="image/png")
    with torch.no_grad():
        picture = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
        expected = vae.encode(picture).latent_dist.mode().numpy()
    np.testing.assert_allclose(tensor_of(reply), expected, atol=1e-4)


def test_bytes(handler: EndpointHandler, vae: AutoencoderKL) -> None:
    """A toolkit that hands raw bytes on has them decoded."""
    found = handler({"inputs": LATENT.tobytes(), "parameters": {**P0, "output_type": "pt"}})
    assert isinstance(found, dict)
    raw = np.frombuffer(base64.b64decode(found["inputs"]), np.float32)
    np.testing.assert_allclose(raw, decoded(vae, 0.31).ravel(), atol=1e-5)


@pytest.mark.parametrize(
    ("body", "query", "text"),
    [
        ({"inputs": in_base64(), "parameters": {**P0, "shape": [1, 9, 8, 8]}}, "", "needs 2304"),
        ({"inputs": in_base64()}, "shape=1&shape=4&shape=8&shape=8&dtype=float32", r"shape \[8\] of float32"),
        ({"inputs": "?"}, "", "not valid base64"),
        ({"inputs": 5}, "", "needs base64 text"),
        ({"inputs": in_base64(), "parameters": 5}, "", "must be a JSON object"),
        ({"inputs": in_base64(), "parameters": {**P0, "scalign_factor": 1}}, "", "scaling_factor"),
        ({"inputs": in_base64(), "parameters": {**P0, "output_type": "mp4"}}, "", "needs a video model"),
    ],
)
async def test_bad_input(endpoint: Any, body: object, query: str, text: str) -> None:
    """What is wrong is said in the words of the server; the toolkit knows no status but 400."""
    reply = await endpoint(body, query)
    assert reply.status_code == 400
    assert re.search(text, reply.json()["error"])


@pytest.mark.parametrize("media", ["tensor/binary", "tensor/base64", "application/octet-stream"])
async def test_what_the_toolkit_does_not_carry(endpoint: Any, media: str) -> None:
    """The content types of diffusers' own client do not pass the toolkit: such clients need the container."""
    reply = await endpoint(LATENT.tobytes(), "shape=1,4,8,8&dtype=float32", content_type=media)
    assert reply.status_code == 400
    assert "not supported" in reply.json()["error"]


def test_errors_keep_their_class(handler: EndpointHandler) -> None:
    """Code that calls the handler itself gets the class that the server means."""
    with pytest.raises(LatentMismatch, match="9 channels"):
        handler({"inputs": bytes(9 * 256), "parameters": {**P0, "shape": [1, 9, 8, 8]}})


def test_a_folder_without_a_vae(tmp_path: Path) -> None:
    """A handler started without a VAE in its folder says what it looked for."""
    with pytest.raises(ConfigurationError, match=r"there is no VAE in folder .*; expected config\.json"):
        EndpointHandler(str(tmp_path))
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(ConfigurationError, match="there is no VAE in folder"):
        EndpointHandler(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigurationError, match="is not JSON"):
        EndpointHandler(str(tmp_path))


def test_a_vae_that_does_not_load(tmp_path: Path, vae: AutoencoderKL) -> None:
    """A handler whose weights are broken says so and leaves no process behind."""
    vae.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    before = {child.pid for child in psutil.Process().children()}
    with pytest.raises(ModelLoadError, match="the weights in"):
        EndpointHandler(str(tmp_path))
    assert {child.pid for child in psutil.Process().children()} <= before
