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
from diffusers.modular_pipelines.qwenimage.decoders import QwenImageLayeredDecoderStep
from diffusers.modular_pipelines.qwenimage21.decoders import QwenImage21DecodeStep
from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered
from PIL import Image

from remote_vae import Client, RemoteVAE, remote_decode, remote_encode
from remote_vae.errors import InvalidValue, LatentMismatch, MalformedRequest, TooLarge, UnsupportedOutput

from .cases.qwen_image_rgba import TINY_21
from .conftest import Families, serve, tiny_wan
from .pipelines import call, embeds, flow

SIZE = {"height": 80, "width": 64}  # 64 by 64 pixels to the pipeline, which floors to multiples of 32
TRANSFORMER_21: dict[str, Any] = {
    "num_layers": 1,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "context_in_dim": 16,
    "axes_dims_rope": (4, 4, 4),
}
RECIPES = {"new": "qwen-image-2.1", "layered": "qwen-image-layered"}
LAYERED: dict[str, Any] = {
    "num_layers": 1,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 4, 4),
    "use_additional_t_cond": True,
    "use_layer3d_rope": True,
}
LAYERED_SIZE = {"height": 96, "width": 64}


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


class TextEncoder:
    """What the pipeline of Layered reads of its text encoder."""

    dtype = torch.float32


def run_layered(vae: Any, *, layers: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The layers of every picture [(B L),4,H,W], and the packed latent, which `output_type="latent"` fails to give."""
    torch.manual_seed(3)
    networks = flow(diffusers.QwenImageTransformer2DModel, **LAYERED)()
    parts = {"text_encoder": TextEncoder(), "tokenizer": None, "processor": None}
    pipeline = diffusers.QwenImageLayeredPipeline(vae=vae, **parts, **networks)
    pipeline.set_progress_bar_config(disable=True)
    latents: list[torch.Tensor] = []
    found = call(
        pipeline,
        "pt",
        image=picture(64, 96),
        prompt=["x"] * batch,
        prompt_embeds=embeds(batch, 7, 16),
        layers=layers,
        true_cfg_scale=1.0,
        callback_on_step_end=lambda *given: latents.append(given[3]["latents"]) or {},
    )
    return torch.cat(found), latents[-1]  # its list is sliced wrongly for several pictures, but has all layers


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline of Layered knows resolutions of 640 and 1024 only."""
    monkeypatch.setattr(pipeline_qwenimage_layered, "calculate_dimensions", lambda area, ratio: (64, 96))


def check_levels(found: torch.Tensor, pixels: torch.Tensor) -> None:
    """[B,H,W,4] are the bytes of pixels [B,4,H,W] in [0, 1]; one in 5000 may be the next one.

    The last bits of floats differ: the pipeline of 2.1 holds its tokens transposed in memory, which the wire does not
    say, and that of Layered divides by 1 / deviation.
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
    modules = {
        "new": diffusers.AutoencoderKLQwenImage21(**TINY_21).eval(),
        "layered": tiny_wan(diffusers.AutoencoderKLQwenImage, input_channels=4).eval(),
    }
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


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("layers", "batch"), [(1, 1), (3, 1), (2, 2)])
def test_a_latent_with_layers_gives_the_layers(served: Families, layers: int, batch: int) -> None:
    """The packed latent of the pipeline gives the layers that it gives, picture by picture, without their composite."""
    pixels, latents = run_layered(served.modules["layered"], layers=layers, batch=batch)
    assert pixels.shape == (batch * layers, 4, 96, 64)
    assert latents.shape == (batch, (layers + 1) * 24, 64)
    assert float(pixels.std()) > 0.02, "the picture must have something to compare"
    url = f"{served.url}/layered"
    found = remote_decode(url, latents, output_type="pt", return_type="pt", **LAYERED_SIZE)
    torch.testing.assert_close((found * 0.5 + 0.5).clamp(0, 1), pixels, atol=1e-5, rtol=0)
    levels = remote_decode(url, latents, output_type="pt", return_type="pt", partial_postprocess=True, **LAYERED_SIZE)
    check_levels(levels, pixels)
    pictures = remote_decode(
        url, latents, output_type="pt", return_type="pil", partial_postprocess=True, **LAYERED_SIZE
    )
    pictures = pictures if isinstance(pictures, list) else [pictures]  # one picture comes by itself
    assert [picture.mode for picture in pictures] == ["RGBA"] * batch * layers
    assert all(np.array_equal(each, array) for each, array in zip(pictures, levels, strict=True))


@pytest.mark.usefixtures("small")
def test_one_picture_of_layers_is_the_first(served: Families) -> None:
    """A written picture shows the first layer, and the reply says so."""
    pixels, latents = run_layered(served.modules["layered"], layers=3, batch=1)
    with Client(served.url) as client:
        how: dict[str, Any] = {"model": "layered", "do_scaling": True, **LAYERED_SIZE}
        reply, found = client.decode_reply(latents, **how), client.decode(latents, **how)
    assert reply.provenance.note == "the first of 3 pictures; a tensor has them all"
    check_levels(torch.from_numpy(np.array(found))[None], pixels[:1])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("layers", "batch"), [(3, 1), (2, 2)])
def test_a_remote_vae_in_the_pipeline_of_layers(served: Families, layers: int, batch: int) -> None:
    """The pipeline of Layered, which encodes a picture and decodes its layers, gives the pixels of its own VAE."""
    vaes = RemoteVAE(f"{served.url}/layered"), served.modules["layered"]
    found, expected = (run_layered(vae, layers=layers, batch=batch)[0] for vae in vaes)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_fallback_without_transparency(served: Families) -> None:
    """A local VAE with pictures of three channels is refused as the fallback of a model that has four."""
    url, module = f"{served.url}/layered", served.modules["layered"]
    assert RemoteVAE(url, fallback=module).config.input_channels == 4
    with pytest.raises(InvalidValue, match="the fallback has input_channels=3, and the server's model 4"):
        RemoteVAE(url, fallback=tiny_wan(diffusers.AutoencoderKLQwenImage))


@pytest.mark.parametrize(
    ("name", "step", "shapes"),
    [
        ("layered", QwenImageLayeredDecoderStep, [(1, 16, 4, 6, 4), (2, 16, 3, 6, 4)]),
        ("new", QwenImage21DecodeStep, [(1, 64, 1, 4, 6), (2, 64, 4, 6)]),
    ],
)
def test_modular_blocks(served: Families, name: str, step: Any, shapes: list[tuple[int, ...]]) -> None:
    """The block that decodes in a modular pipeline gives the same pixels."""
    pipeline = step().init_pipeline()
    pipeline.update_components(vae=served.modules[name])
    for shape in shapes:
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        expected = pipeline(latents=latents.clone(), output_type="pt", output="images")
        expected = torch.cat(expected) if isinstance(expected, list) else expected
        found = remote_decode(f"{served.url}/{name}", latents, output_type="pt", return_type="pt")
        torch.testing.assert_close((found * 0.5 + 0.5).clamp(0, 1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["RGBA", "RGB"])
def test_the_pipeline_encodes_through_a_remote_vae(served: Families, mode: str) -> None:
    """A picture that conditions the pipeline of 2.1 gives the latent that the VAE itself gives."""
    pixels = VaeImageProcessor(vae_scale_factor=16).preprocess(picture(64, 96, mode).convert("RGBA")).unsqueeze(2)
    vaes = (RemoteVAE(f"{served.url}/new"), served.modules["new"])
    with torch.no_grad():
        found, expected = (build_21(vae)._encode_vae_image(pixels, None) for vae in vaes)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "multiple"), [("new", 32), ("layered", 16)])
@pytest.mark.parametrize("mode", ["RGBA", "RGB", "P", "L"])
@pytest.mark.parametrize("size", [(64, 96), (75, 99)])
def test_a_picture_becomes_a_latent(
    served: Families, name: str, multiple: int, mode: str, size: tuple[int, int]
) -> None:
    """A picture is encoded with its transparency, one without it as opaque; sides are floored as in the pipelines."""
    image, module = picture(*size, mode), served.modules[name]
    pixels = VaeImageProcessor(vae_scale_factor=multiple).preprocess(image.convert("RGBA"))
    found = remote_encode(f"{served.url}/{name}", image)
    with Client(f"{served.url}") as client:
        own = client.encode(image, model=name, do_scaling=True)
    with torch.no_grad():
        expected = module.encode(pixels.unsqueeze(2)).latent_dist.mode()[:, :, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.from_numpy(own), latent_of(module, pixels), atol=1e-5, rtol=0)


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
        with pytest.raises(LatentMismatch, match=r"32 tokens; .* = 16"):
            client.decode(torch.zeros(1, 32, 64), model="new", **SIZE)
        with pytest.raises(LatentMismatch, match="16 channels; model 'new' takes 64"):
            client.decode(torch.zeros(1, 16, 4, 4), model="new")
    with pytest.raises(InvalidValue, match=r"\[1, 3, 64, 64\] is no picture for model 'new'; expected \[B,4,H,W\]"):
        RemoteVAE(f"{served.url}/new").encode(torch.zeros(1, 3, 64, 64))


def test_wrong_layers(served: Families) -> None:
    """Layers beyond the limit, and tokens that are no layers, are refused with the numbers."""
    with Client(served.url) as client:
        with pytest.raises(
            LatentMismatch, match=r"49 tokens; .* 96//16 x 64//16 = 24 for each layer, and 49 is no mul"
        ):
            client.decode(torch.zeros(1, 49, 64), model="layered", **LAYERED_SIZE)
        with pytest.raises(MalformedRequest, match="needs height and width"):
            client.decode(torch.zeros(1, 48, 64), model="layered")
        with pytest.raises(TooLarge, match="batch would be 80; the limit here is"):
            client.decode(torch.zeros(1, 16, 81, 2, 2), model="layered")
        with pytest.raises(LatentMismatch, match=r"\[1, 4, 16, 2, 2\] has 4 channels; model 'layered' takes 16"):
            client.decode(torch.zeros(1, 4, 16, 2, 2), model="layered")


def test_the_card_says_the_channels(served: Families) -> None:
    with Client(served.url) as client:
        card, layered = client.models()
    assert (layered["pixel_channels"], layered["latent_layouts"][1]) == (4, "b (l h w) (c i j)")
    assert (card["pixel_channels"], card["latent_channels"], card["spatial_compression_ratio"]) == (4, 64, 16)
    assert (card["kind"], card["temporal_compression_ratio"]) == ("image", 1)
