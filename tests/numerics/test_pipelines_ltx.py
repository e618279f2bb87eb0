"""LTX-Video and LTX-2 against their own pipelines: what they hand out, and with a RemoteVAE in them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

from remote_vae import Client, RemoteVAE, remote_decode

from .cases.ltx import GROUPS, TIMESTEPS, tiny_ltx
from .cases.ltx2 import tiny_ltx2
from .conftest import Families, serve
from .pipelines import Case, embeds, flow, picture

# LTXConditionPipeline hands tensors to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
SIZE = {"height": 64, "width": 96, "num_frames": 9}
RECIPES = {"ltx": "ltx", "steps": "ltx-0.9.5", "ltx2": "ltx2", "steps2": "ltx2"}
LTX: dict[str, Any] = {
    "in_channels": 128,
    "out_channels": 128,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "num_layers": 1,
    "caption_channels": 16,
}
LTX_FLOW = flow(diffusers.LTXVideoTransformer3DModel, **LTX)


def ltx2_parts() -> dict[str, Any]:
    """What LTX-2's pipelines are made of, but for the VAE."""
    audio = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    )
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_learnable_registers": None}
    connectors = LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=1,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
        rope_type="split",
        **{f"{kind}_connector_{name}": value for kind in ("video", "audio") for name, value in heads.items()},
    )
    audio_transformer = {
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8,
    }
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=16, upsample_kernel_sizes=[4], upsample_factors=[2], resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
    )  # fmt: skip
    transformer = flow(
        diffusers.LTX2VideoTransformer3DModel,
        **LTX,
        **audio_transformer,
        rope_double_precision=False,
        rope_type="split",
    )
    return {**transformer(), "audio_vae": audio, "connectors": connectors, "vocoder": vocoder}


GUIDED = {name: 1.0 for name in ("modality_scale", "audio_guidance_scale", "audio_modality_scale")}
UNGUIDED = {name: 0.0 for name in ("stg_scale", "audio_stg_scale")}
LTX2_CALL = {**SIZE, **GUIDED, **UNGUIDED, "spatio_temporal_guidance_blocks": None}
STEPS = {"decode_timestep": 0.3, "decode_noise_scale": 0.2}
CASES = {
    "ltx": Case(diffusers.LTXPipeline, "ltx", LTX_FLOW, SIZE, pooled=False, mask=True),
    "condition": Case(diffusers.LTXConditionPipeline, "steps", LTX_FLOW, SIZE, pooled=False, mask=True),
    "ltx2": Case(diffusers.LTX2Pipeline, "ltx2", ltx2_parts, LTX2_CALL, pooled=False, mask=True),
}
WITH_STEPS = {
    "steps": Case(diffusers.LTXPipeline, "steps", LTX_FLOW, {**SIZE, **STEPS}, pooled=False, mask=True),
    "steps2": replace(CASES["ltx2"], family="steps2", call={**LTX2_CALL, **STEPS}),
}
FROM_PICTURES = {
    "ltx-image": Case(
        diffusers.LTXImageToVideoPipeline, "ltx", LTX_FLOW, {**SIZE, "image": picture(64, 96)}, pooled=False, mask=True
    ),
    "condition-image": replace(CASES["condition"], call={**SIZE, "image": picture(64, 96)}),
    "ltx2-image": replace(
        CASES["ltx2"], cls=diffusers.LTX2ImageToVideoPipeline, call={**LTX2_CALL, "image": picture(64, 96)}
    ),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    torch.manual_seed(19)
    modules = {
        "ltx": tiny_ltx().eval(),
        "steps": tiny_ltx(**TIMESTEPS, **GROUPS).eval(),
        "ltx2": tiny_ltx2().eval(),
        "steps2": tiny_ltx2(timestep_conditioning=True).eval(),
    }
    with serve(modules, RECIPES, tmp_path_factory.mktemp("ltx")) as found:
        yield found


def check(url: str, latents: torch.Tensor, pixels: torch.Tensor) -> None:
    """A pipeline's latent against its frames in [0, 1]."""
    assert float(pixels.std()) > 0.02, "the video must have something to compare"
    sizes = {"height": 64, "width": 96} if latents.ndim == 3 else {}
    found = remote_decode(url, latents, do_scaling=True, output_type="pt", return_type="pt", **sizes)
    torch.testing.assert_close((found * 0.5 + 0.5).clamp(0, 1), pixels.transpose(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_a_latent_of_a_pipeline_gives_its_video(served: Families, name: str) -> None:
    """The latent that a pipeline hands out, packed or not, is decoded to the video that the pipeline gives."""
    case = CASES[name]
    module = served.modules[case.family]
    pixels, latents = case.run(module, "pt"), case.run(module, "latent")
    assert pixels.shape[1] == 9
    check(f"{served.url}/{case.family}", latents, pixels)


def test_a_seed_is_a_generator_for_the_decode(served: Families) -> None:
    """With a latent to begin from, the pipeline's generator draws for the decode alone, and a seed gives its video."""
    case, noise = WITH_STEPS["steps"], embeds(1, 12, 128)
    pixels, latents = (
        case.run(served.modules["steps"], kind, generator=torch.Generator().manual_seed(5), latents=noise)
        for kind in ("pt", "latent")
    )
    with Client(f"{served.url}/steps") as client:
        found = client.decode(latents, do_scaling=True, output_type="pt", seed=5, height=64, width=96, **STEPS)
    torch.testing.assert_close((found * 0.5 + 0.5).clamp(0, 1), pixels.transpose(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*CASES, *WITH_STEPS, *FROM_PICTURES])
def test_a_remote_vae_in_a_pipeline(served: Families, name: str) -> None:
    """A pipeline with a RemoteVAE gives the pixels that it gives with the VAE itself."""
    case = {**CASES, **WITH_STEPS, **FROM_PICTURES}[name]
    found, expected = (case.run(vae) for vae in (RemoteVAE(f"{served.url}/{case.family}"), served.modules[case.family]))
    assert float(expected.std()) > 0.02, "the video must have something to compare"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_timestep_for_each_video(served: Families) -> None:
    """A pipeline may have another timestep for each video of a batch."""
    case = replace(WITH_STEPS["steps"], call={**SIZE, "decode_timestep": [0.3, 0.1], "decode_noise_scale": 0.2})
    remote = RemoteVAE(f"{served.url}/steps")
    found, expected = (case.run(vae, batch=2) for vae in (remote, served.modules["steps"]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_what_pipelines_read(served: Families) -> None:
    """A RemoteVAE has ratios, the statistics as tensors, and the config's word on timesteps; with a fallback too."""
    for name, module in served.modules.items():
        vae = RemoteVAE(f"{served.url}/{name}")
        with pytest.warns(RuntimeWarning, match="the fallback"):
            alone = RemoteVAE("http://127.0.0.1:9", timeout=0.5, fallback=module)
        for found in (vae, alone):
            assert (found.spatial_compression_ratio, found.temporal_compression_ratio) == (32, 8)
            assert torch.equal(found.latents_mean, module.latents_mean)
            assert torch.equal(found.latents_std, module.latents_std)
            assert found.config.timestep_conditioning == module.config.timestep_conditioning
