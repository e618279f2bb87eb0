"""CogVideoX, Mochi, Allegro, EasyAnimate and Cosmos 1.0 against their own pipelines, and with a RemoteVAE in them."""

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, EDMEulerScheduler, EulerAncestralDiscreteScheduler

from remote_vae import RemoteVAE, remote_decode

from .cases.video import allegro, cogvideox, cosmos, easyanimate, mochi
from .conftest import Families, serve
from .pipelines import Case, flow, picture
from .pipelines_of_wan import NoChecker

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # Cosmos hands tensors to numpy
    pytest.mark.filterwarnings("ignore:In CPU autocast"),  # Mochi computes its positions in float32
]
SIZE = {"height": 32, "width": 48}
RECIPES = {
    "cog": "cogvideox",
    "cog15": "cogvideox1.5-i2v",
    "mochi": "mochi",
    "allegro": "allegro",
    "easy": "easyanimate",
    "cosmos": "cosmos",
}
COG: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "num_layers": 1,
    "sample_width": 6,
    "sample_height": 4,
    "sample_frames": 9,
    "max_text_seq_length": 7,
    "use_rotary_positional_embeddings": True,
}
COG15: dict[str, Any] = {**COG, "patch_size_t": 2, "patch_bias": False}
MOCHI: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_layers": 2,
    "pooled_projection_dim": 16,
    "text_embed_dim": 16,
    "time_embed_dim": 4,
    "max_sequence_length": 7,
}
EASY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "num_layers": 1,
    "mmdit_layers": 1,
    "time_embed_dim": 8,
    "text_embed_dim": 16,
    "sample_width": 6,
    "sample_height": 4,
}
ALLEGRO: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 1,
    "cross_attention_dim": 24,
    "sample_width": 16,
    "sample_height": 16,
    "sample_frames": 6,
    "caption_channels": 16,
}
COSMOS: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 1,
    "mlp_ratio": 2,
    "text_embed_dim": 16,
    "adaln_lora_dim": 4,
    "max_size": (4, 8, 8),
    "concat_padding_mask": False,  # which needs torchvision
}
MASKS = {"prompt_attention_mask": torch.ones(1, 7), "negative_prompt_attention_mask": torch.ones(1, 7)}


def denoised(cls: Any, scheduler: Callable[[], Any], **config: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"transformer": cls(**config), "scheduler": scheduler()}


def cog(**config: Any) -> Callable[[], dict[str, Any]]:
    return denoised(diffusers.CogVideoXTransformer3DModel, CogVideoXDDIMScheduler, **config)


def checked(**config: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "transformer": diffusers.CosmosTransformer3DModel(**config),
        "scheduler": EDMEulerScheduler(sigma_data=0.5),
        "safety_checker": NoChecker(),
    }


VIDEOS = {
    "cogvideox": Case(diffusers.CogVideoXPipeline, "cog", cog(**COG), {**SIZE, "num_frames": 9}, pooled=False),
    "cogvideox, an even number": Case(
        diffusers.CogVideoXPipeline, "cog", cog(**COG), {**SIZE, "num_frames": 5}, pooled=False
    ),
    "mochi": Case(
        diffusers.MochiPipeline,
        "mochi",
        flow(diffusers.MochiTransformer3DModel, **MOCHI),
        {**SIZE, "num_frames": 7, **MASKS},
        pooled=False,
    ),
    "easyanimate": Case(
        diffusers.EasyAnimatePipeline,
        "easy",
        flow(diffusers.EasyAnimateTransformer3DModel, **EASY),
        {**SIZE, "num_frames": 9, **MASKS},
        pooled=False,
    ),
    "allegro": Case(
        diffusers.AllegroPipeline,
        "allegro",
        denoised(diffusers.AllegroTransformer3DModel, EulerAncestralDiscreteScheduler, **ALLEGRO),
        {"height": 128, "width": 128, "num_frames": 24, **MASKS},
        pooled=False,
    ),
    "cosmos": Case(
        diffusers.CosmosTextToWorldPipeline,
        "cosmos",
        checked(**COSMOS),
        {**SIZE, "num_frames": 17},
        pooled=False,
    ),
}
PADDED = Case(diffusers.CogVideoXPipeline, "cog15", cog(**COG15), {**SIZE, "num_frames": 9}, pooled=False)
FROM_VIDEOS = {
    "cogvideox from a picture": Case(
        diffusers.CogVideoXImageToVideoPipeline,
        "cog",
        cog(**COG, in_channels=32),
        {**SIZE, "num_frames": 9, "image": picture(32, 48)},
        pooled=False,
    ),
    "cogvideox1.5 from a picture": Case(
        diffusers.CogVideoXImageToVideoPipeline,
        "cog15",
        cog(**COG15, in_channels=32),
        {**SIZE, "num_frames": 9, "image": picture(32, 48)},
        pooled=False,
    ),
    "cogvideox from a video": Case(
        diffusers.CogVideoXVideoToVideoPipeline,
        "cog",
        cog(**COG),
        {**SIZE, "video": [picture(32, 48)] * 9, "strength": 0.9},
        pooled=False,
    ),
}


def make_modules() -> dict[str, Any]:
    torch.manual_seed(19)
    modules = {
        "cog": cogvideox(),
        "cog15": cogvideox(invert_scale_latents=True),
        "mochi": mochi(),
        "allegro": allegro(),
        "easy": easyanimate(),
        "cosmos": cosmos(),
    }
    return {name: module.eval() for name, module in modules.items()}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    with serve(make_modules(), RECIPES, tmp_path_factory.mktemp("videos")) as found:
        yield found


def check(served: Families, case: Case, latents: torch.Tensor, pixels: torch.Tensor) -> None:
    """A pipeline's pixels in [0, 1]; if the pipeline checks them, they are cut to the eight bits below."""
    half = 0.5 / 255 if case.family == "cosmos" else 0.0
    assert float(pixels.std()) > 0.02, "the video must have something to compare"
    url = f"{served.url}/{case.family}"
    found = remote_decode(url, latents, do_scaling=True, output_type="pt", return_type="pt")
    found = (found * 0.5 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found, pixels.transpose(1, 2) + half, atol=half + 1e-5, rtol=0)


@pytest.mark.parametrize("name", VIDEOS)
def test_a_latent_of_a_pipeline_gives_its_video(served: Families, name: str) -> None:
    """The latent that a pipeline hands out is decoded to the video that the pipeline gives with its own VAE."""
    case = VIDEOS[name]
    module = served.modules[case.family]
    check(served, case, case.run(module, "latent"), case.run(module, "pt"))


def test_latent_frames_that_are_added(served: Families) -> None:
    """CogVideoX 1.5 hands out the latent frame that it adds in front; without it the latent gives its video."""
    pixels, latents = (PADDED.run(served.modules["cog15"], kind) for kind in ("pt", "latent"))
    assert (latents.shape[1], pixels.shape[1]) == (4, 9)
    check(served, PADDED, latents[:, 1:], pixels)


@pytest.mark.parametrize("name", [*VIDEOS, *FROM_VIDEOS])
def test_a_remote_vae_in_a_pipeline(served: Families, name: str) -> None:
    """A pipeline with a RemoteVAE gives the pixels that it gives with the VAE itself."""
    case = {**VIDEOS, **FROM_VIDEOS}[name]
    url = f"{served.url}/{case.family}"
    found, expected = (case.run(vae) for vae in (RemoteVAE(url), served.modules[case.family]))
    assert float(expected.std()) > 0.02, "the video must have something to compare"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
