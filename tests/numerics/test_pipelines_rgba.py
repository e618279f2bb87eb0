"""Qwen-Image's models with pictures of four channels, against their own pipelines and over HTTP."""

from collections.abc import Iterator
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import requests
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from remote_vae import Client, RemoteVAE, remote_decode, remote_encode
from remote_vae.errors import InvalidValue, LatentMismatch, UnsupportedOutput

from .cases.qwen_image_rgba import TINY_21
from .conftest import Families, serve
from .pipelines import call, embeds, flow

SIZE = {"height": 80, "width": 64}  # 64 by 64 pixels to the pipeline, which floors to multiples of 32
TRANSFORMER_21: dict[str, Any] = {
    "num_layers": 1,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "context_in_dim": 16,
    "axes_dims_rope": (4, 4, 4),
}
RECIPES = {"new": "qwen-image-2.1"}


class Processor:
    """What the pipeline of 2.1 asks its processor when it is built."""

    tokenizer = SimpleNamespace(encode=lambda text: [0])

    def apply_chat_template(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[0]]


def build_21(vae: Any) -> Any:
    torch.manual_seed(3)
    networks = flow(diffusers.QwenImage21Transformer2DModel, **TRANSFORMER_21)()
    pipeline = diffusers.QwenImage21Pipeline(vae=vae, text_encoder=None, processor=Processor(), **networks)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_21(vae: Any, output_type: str = "pt", *, batch: int = 1) -> torch.Tensor:
    found: torch.Tensor = call(build_21(vae), output_type, prompt_embeds=embeds(batch, 7, 16), **SIZE)
    return found


def check_levels(found: torch.Tensor, pixels: torch.Tensor) -> None:
    """[B,H,W,4] are the bytes of pixels [B,4,H,W] in [0, 1]; one in 5000 may be the next one.

    The pipeline of 2.1 holds its tokens transposed in memory, which the wire does not say and the last bit depends on.
    """
    difference = (found.int() - (pixels * 255).round().permute(0, 2, 3, 1).int()).abs()
    assert int(difference.max()) <= 1
    assert float((difference > 0).float().mean()) <= 1 / 5000


def picture(width: int, height: int, mode: str = "RGBA") -> Image.Image:
    values = np.random.default_rng(3).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    torch.manual_seed(17)
    modules = {"new": diffusers.AutoencoderKLQwenImage21(**TINY_21).eval()}
    with serve(modules, RECIPES, tmp_path_factory.mktemp("rgba")) as found:
        yield found


def latent_of(module: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The pipelines' latent of pixels [B,4,H,W] in [-1, 1]."""
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1) for values in (module.config.latents_mean, module.config.latents_std)
    )
    with torch.no_grad():
        return (module.encode(pixels.unsqueeze(2)).latent_dist.mode()[:, :, 0] - mean) / std


@pytest.mark.parametrize("batch", [1, 2])
def test_a_latent_of_the_pipeline_gives_its_picture(served: Families, batch: int) -> None:
    """The packed latent that the pipeline of 2.1 hands out gives its pictures of four channels."""
    pixels, latents = (run_21(served.modules["new"], what, batch=batch) for what in ("pt", "latent"))
    assert (pixels.shape, latents.shape) == ((batch, 4, 64, 64), (batch, 16, 64))
    assert float(pixels.std()) > 0.02, "the picture must have something to compare"
    url = f"{served.url}/new"
    found = remote_decode(url, latents, output_type="pt", return_type="pt", **SIZE)
    torch.testing.assert_close((found * 0.5 + 0.5).clamp(0, 1), pixels, atol=1e-5, rtol=0)
    levels = remote_decode(url, latents, output_type="pt", return_type="pt", partial_postprocess=True, **SIZE)
    check_levels(levels, pixels)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_remote_vae_in_the_pipeline(served: Families, batch: int) -> None:
    found, expected = (run_21(vae, batch=batch) for vae in (RemoteVAE(f"{served.url}/new"), served.modules["new"]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["RGBA", "RGB"])
def test_the_pipeline_encodes_through_a_remote_vae(served: Families, mode: str) -> None:
    """A picture that conditions the pipeline of 2.1 gives the latent that the VAE itself gives."""
    pixels = VaeImageProcessor(vae_scale_factor=16).preprocess(picture(64, 96, mode).convert("RGBA")).unsqueeze(2)
    vaes = (RemoteVAE(f"{served.url}/new"), served.modules["new"])
    with torch.no_grad():
        found, expected = (build_21(vae)._encode_vae_image(pixels, None) for vae in vaes)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "P", "L"])
@pytest.mark.parametrize("size", [(64, 96), (75, 99)])
def test_a_picture_becomes_a_latent(served: Families, mode: str, size: tuple[int, int]) -> None:
    """A picture is encoded with its transparency, one without it as opaque; sides are floored to multiples of 32."""
    image = picture(*size, mode)
    pixels = VaeImageProcessor(vae_scale_factor=32).preprocess(image.convert("RGBA"))
    found = remote_encode(f"{served.url}/new", image)
    with Client(f"{served.url}") as client:
        own = client.encode(image, model="new", do_scaling=True)
    with torch.no_grad():
        expected = served.modules["new"].encode(pixels.unsqueeze(2)).latent_dist.mode()[:, :, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.from_numpy(own), latent_of(served.modules["new"], pixels), atol=1e-5, rtol=0)


def test_tensors_become_latents(served: Families) -> None:
    """Floats and bytes of four channels are the same picture."""
    image = picture(64, 96)
    levels = torch.from_numpy(np.array(image))
    pixels = levels.permute(2, 0, 1)[None].float() / 255
    expected = latent_of(served.modules["new"], pixels * 2 - 1)
    with Client(served.url) as client:
        for sent in (pixels, pixels * 2 - 1, pixels[0], levels[None], levels.permute(2, 0, 1)[None].contiguous()):
            found = client.encode(sent, model="new", do_scaling=True)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("image_format", ["png", "webp", "avif"])
def test_a_written_picture_is_transparent(served: Families, image_format: str) -> None:
    """Each format that holds transparency brings the picture of the pipeline."""
    pixels, latents = (run_21(served.modules["new"], what) for what in ("pt", "latent"))
    with Client(served.url) as client:
        found = client.decode(latents, model="new", do_scaling=True, image_format=image_format, quality=100, **SIZE)
    assert (found.mode, found.size) == ("RGBA", (64, 64))
    if image_format == "png":
        check_levels(torch.from_numpy(np.array(found))[None], pixels)
    alpha = np.abs(np.asarray(found)[..., 3] - 255 * pixels[0, 3].numpy())
    assert alpha.mean() < 2


def post(served: Families, latents: torch.Tensor, *, accept: str | None = None, **query: Any) -> requests.Response:
    shape, headers = ",".join(map(str, latents.shape)), {"content-type": "tensor/binary"}
    return requests.post(
        f"{served.url}/new/decode",
        latents.numpy().tobytes(),
        params={"shape": shape, "dtype": "float32", **query},
        headers=headers if accept is None else {**headers, "accept": accept},
        timeout=60,
    )


LATENT = torch.randn((1, 64, 4, 2), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("accept", [None, "*/*", "image/*", "image/jpeg, image/png;q=0.1"])
def test_the_default_format_holds_transparency(served: Families, accept: str | None) -> None:
    """Without a wish for a format that lacks it, a picture with transparency is a PNG."""
    reply = post(served, LATENT, accept=accept)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
    assert Image.open(BytesIO(reply.content)).mode == "RGBA"


def test_a_format_without_transparency_is_refused(served: Families) -> None:
    """JPEG and MP4 are refused with the formats that hold the picture; a tensor comes whatever format is named."""
    with pytest.raises(
        UnsupportedOutput, match=r"'new' have transparency, which jpg does not hold; .* png, webp, avif"
    ):
        remote_decode(f"{served.url}/new", LATENT)
    reply = post(served, LATENT, accept="image/jpeg")
    assert (reply.status_code, reply.json()["error_type"]) == (406, "not_acceptable")
    assert "image/png" in reply.json()["error"]
    assert post(served, LATENT, output_type="mp4").json()["error_type"] == "unsupported_output"
    tensor = post(served, LATENT, image_format="jpg", accept="tensor/binary")
    assert tensor.headers["shape"] == "[1, 4, 64, 32]"


def test_wrong_sizes(served: Families) -> None:
    """What does not fit is refused with the numbers that would."""
    with Client(served.url) as client:
        for channels in (1, 3, 5):
            with pytest.raises(LatentMismatch, match=r"'new'; expected \[B,4,H,W\], \[4,H,W\], or uint8 \[B,H,W,4\]"):
                client.encode(torch.zeros(1, channels, 64, 64), model="new")
        with pytest.raises(LatentMismatch, match="of an opaque picture alpha is 1"):
            client.encode(torch.zeros(1, 3, 64, 64), model="new")
        with pytest.raises(LatentMismatch, match=r"15 tokens; .* 80//32 x 64//32 groups of 2x2 = 16"):
            client.decode(torch.zeros(1, 15, 64), model="new", **SIZE)
        with pytest.raises(LatentMismatch, match="16 channels; model 'new' takes 64"):
            client.decode(torch.zeros(1, 16, 4, 4), model="new")
    with pytest.raises(InvalidValue, match=r"\[1, 3, 64, 64\] is no picture for model 'new'; expected \[B,4,H,W\]"):
        RemoteVAE(f"{served.url}/new").encode(torch.zeros(1, 3, 64, 64))


def test_the_card_says_the_channels(served: Families) -> None:
    with Client(served.url) as client:
        [card] = client.models()
    assert (card["pixel_channels"], card["latent_channels"], card["spatial_compression_ratio"]) == (4, 64, 16)
    assert (card["kind"], card["temporal_compression_ratio"]) == ("image", 1)
