"""Previews of videos on a live server: what the previewed model's pipelines hand out, as tensors, MP4 and pictures."""

import io
from collections.abc import Iterator
from typing import Any

import av
import diffusers
import numpy as np
import pytest
import torch

from remote_vae import Client, RemoteVAE, remote_decode
from remote_vae.models.families import MODELS

from .cases.case import per_channel
from .cases.taehv import decoded, encoded, tiny
from .conftest import WAN_22, Families, serve, tiny_wan
from .pipelines import Case, flow
from .pipelines_of_wan import QWEN, WAN

RECIPES = {"cog": "taecvx", "wan": "taew2.1", "qwen": "taew2.1-image", "wan5b": "taew2.2", "hunyuan": "taehv"}
SIZE = {"height": 32, "width": 48}
FRAMES = {"num_frames": 9, "negative_prompt_embeds": None}
CASES = {
    "wan": Case(
        diffusers.WanPipeline,
        "wan",
        flow(diffusers.WanTransformer3DModel, **WAN),
        {**SIZE, **FRAMES},
        pooled=False,
    ),
    "wan5b": Case(
        diffusers.WanPipeline,
        "wan5b",
        flow(diffusers.WanTransformer3DModel, **{**WAN, "in_channels": 48, "out_channels": 48}),
        {"height": 64, "width": 96, **FRAMES},
        pooled=False,
    ),
    "qwen": Case(
        diffusers.QwenImagePipeline,
        "qwen",
        flow(diffusers.QwenImageTransformer2DModel, **QWEN),
        {**SIZE, "prompt_embeds_mask": torch.ones(1, 7), "true_cfg_scale": 1.0},
        pooled=False,
    ),
}


TINY_COG: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 16,
}
COG: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "time_embed_dim": 4,
    "text_embed_dim": 16,
    "max_text_seq_length": 7,
    "num_layers": 1,
    "sample_width": 6,
    "sample_height": 4,
    "sample_frames": 9,
}
COGVIDEOX = Case(
    diffusers.CogVideoXPipeline,
    "cog",
    lambda: {
        "transformer": diffusers.CogVideoXTransformer3DModel(**COG),
        "scheduler": diffusers.CogVideoXDDIMScheduler(),
    },
    {**SIZE, **FRAMES},
    pooled=False,
)


def statistics() -> dict[str, tuple[Any, Any]]:
    """Mean and deviation by channel of the models that are previewed."""
    with torch.device("meta"):
        wan, qwen = diffusers.AutoencoderKLWan().config, diffusers.AutoencoderKLQwenImage().config
    found = {"wan": wan, "qwen": qwen, "wan5b": MODELS["wan2.2-5b"].config}
    return {name: (config["latents_mean"], config["latents_std"]) for name, config in found.items()}


STATISTICS = statistics()


def previewed(name: str) -> Any:
    """A tiny module of the class that the pipeline is made for."""
    if name == "qwen":
        return tiny_wan(diffusers.AutoencoderKLQwenImage)
    return tiny_wan(**WAN_22) if name == "wan5b" else tiny_wan()


@pytest.fixture(scope="module")
def previews(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    torch.manual_seed(17)
    modules = {name: tiny()().eval() for name in ("wan", "qwen", "hunyuan")}
    modules["cog"] = tiny(even_whole=True, scaling_factor=0.7)().eval()
    modules["wan5b"] = tiny(latent_channels=48, patch_size=2)().eval()
    with serve(modules, RECIPES, tmp_path_factory.mktemp("previews")) as found:
        yield found


def unpacked(latents: torch.Tensor) -> torch.Tensor:
    """[1,6,64] -> [1,16,1,4,6], as QwenImagePipeline._unpack_latents."""
    if latents.ndim == 5:
        return latents
    return latents.view(1, 2, 3, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 16, 1, 4, 6)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_latents_of_pipelines(previews: Families, name: str) -> None:
    """The latent that a pipeline hands out is decoded as it is; one that has been scaled already is undone first."""
    latents, url = CASES[name].run(previewed(name), "latent"), f"{previews.url}/{name}"
    normalised = unpacked(latents)
    expected = decoded(previews.modules[name], normalised)
    expected = expected[:, :, 0] if name == "qwen" else expected
    assert float(expected.std()) > 0.02, "there must be something to compare"
    sizes = SIZE if latents.ndim == 3 else {}
    found = remote_decode(url, latents, do_scaling=True, output_type="pt", return_type="pt", **sizes)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    mean, std = (per_channel(values, normalised) for values in STATISTICS[name])
    raw = normalised * std + mean
    found = remote_decode(url, raw, do_scaling=False, output_type="pt", return_type="pt")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_hunyuanvideo_is_scaled_by_a_factor(previews: Families) -> None:
    """The factor of the previewed model is undone if the latent has been scaled already, and put back on encoding."""
    url, module = f"{previews.url}/hunyuan", previews.modules["hunyuan"]
    z = torch.randn((1, 16, 2, 2, 3), generator=torch.Generator().manual_seed(1))
    found = remote_decode(url, z / 0.476986, do_scaling=False, output_type="pt", return_type="pt")
    torch.testing.assert_close(found, decoded(module, z), atol=1e-5, rtol=0)
    pixels = torch.rand((1, 3, 6, 16, 24), generator=torch.Generator().manual_seed(2)) * 2 - 1
    with Client(url) as client:
        scaled = client.encode(pixels, do_scaling=True)
        plain = client.encode(pixels, do_scaling=False)
    torch.testing.assert_close(scaled, encoded(module, pixels), atol=1e-5, rtol=0)
    torch.testing.assert_close(plain, scaled / 0.476986, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_video_and_a_picture(previews: Families) -> None:
    """A latent of Wan comes back as an MP4 with all frames, and as a picture of the first."""
    latents, url = CASES["wan"].run(previewed("wan"), "latent"), f"{previews.url}/wan"
    expected = decoded(previews.modules["wan"], latents)[0].permute(1, 2, 3, 0)
    levels = ((expected * 0.5 + 0.5) * 255).round().numpy().astype(np.uint8)
    with av.open(io.BytesIO(remote_decode(url, latents, do_scaling=True, output_type="mp4", return_type="mp4"))) as mp4:
        frames = [frame.to_ndarray(format="rgb24") for frame in mp4.decode(video=0)]
        assert float(mp4.streams.video[0].average_rate) == 16
    assert len(frames) == 9
    assert np.abs(np.array(frames).astype(float) - levels).mean() < 8
    first = remote_decode(url, latents, do_scaling=True, output_type="pil", image_format="png")
    assert np.array_equal(np.asarray(first), levels[0])


@pytest.mark.parametrize("name", CASES)
def test_a_remote_vae_in_a_pipeline(previews: Families, name: str) -> None:
    """A pipeline runs with a RemoteVAE of the preview, and gives the frames of its latents."""
    case = CASES[name]
    found = case.run(RemoteVAE(f"{previews.url}/{name}"), "pt")
    with torch.no_grad():
        expected = decoded(previews.modules[name], unpacked(case.run(previewed(name), "latent"))) * 0.5 + 0.5
    torch.testing.assert_close(
        found, expected[:, :, 0] if name == "qwen" else expected.transpose(1, 2), atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_cogvideox(previews: Families) -> None:
    """A latent of CogVideoX's pipeline is divided by the factor, by the server or by the pipeline with a RemoteVAE."""
    url, module = f"{previews.url}/cog", previews.modules["cog"]
    own = diffusers.AutoencoderKLCogVideoX(**TINY_COG, scaling_factor=0.7).eval()
    latents = COGVIDEOX.run(own, "latent")
    assert latents.shape == (1, 3, 16, 4, 6)
    expected = decoded(module, latents.transpose(1, 2) / 0.7)
    found = remote_decode(url, latents, do_scaling=True, output_type="pt", return_type="pt")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    pixels = COGVIDEOX.run(RemoteVAE(url), "pt")
    torch.testing.assert_close(pixels, expected.transpose(1, 2) * 0.5 + 0.5, atol=1e-5, rtol=0)
