"""Pipelines of pictures with other autoencoders than AutoencoderKL: Sana, PRX, Kandinsky 2.2 and 3, Stable Cascade."""

from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SCMScheduler

from remote_vae import Client, RemoteVAE, remote_decode
from remote_vae.errors import InvalidImage, LatentMismatch

from .cases.dc_ae import sana
from .cases.rae import rae
from .cases.vq import movq, paella
from .conftest import Families, serve
from .pipelines import Case, embeds, flow, picture

pytestmark = pytest.mark.filterwarnings("ignore:.*LoraLoaderMixin")  # PRX's pipeline uses the old name
RECIPES = {
    "sana": "sana",
    "movq": "movq",
    "cascade": "stable-cascade",
    "rae": "rae",
    "consistency": "consistency-decoder",
}
SIZE = {"height": 32, "width": 64}  # multiples of 32, as the pipelines of Sana check
MASK = torch.ones(1, 7)
SANA: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 4,
    "cross_attention_dim": 8,
    "caption_channels": 16,
    "sample_size": 32,
    "patch_size": 1,
}
SPRINT: dict[str, Any] = {**SANA, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
SANA_CALL = {**SIZE, "prompt_attention_mask": MASK, "use_resolution_binning": False}
PRX: dict[str, Any] = {
    "in_channels": 4,
    "patch_size": 1,
    "context_in_dim": 16,
    "hidden_size": 8,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "axes_dim": [2, 2],
}
KANDINSKY: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 8,
    "addition_embed_type": "image",
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "encoder_hid_dim": 16,
    "encoder_hid_dim_type": "image_proj",
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "resnet_time_scale_shift": "scale_shift",
}
KANDINSKY_CALL = {"height": 64, "width": 64, "image_embeds": embeds(1, 16), "negative_image_embeds": embeds(1, 16)}


def sprint() -> dict[str, Any]:
    return {"transformer": diffusers.SanaTransformer2DModel(**SPRINT), "scheduler": SCMScheduler()}


def prx() -> dict[str, Any]:
    network = diffusers.PRXTransformer2DModel(**PRX)
    return {"transformer": network, "scheduler": FlowMatchEulerDiscreteScheduler()}


def kandinsky() -> dict[str, Any]:
    return {"unet": diffusers.UNet2DConditionModel(**KANDINSKY), "scheduler": DDIMScheduler(clip_sample=False)}


def consistency_decoder() -> Any:
    return diffusers.ConsistencyDecoderVAE(
        scaling_factor=0.37,
        encoder_block_out_channels=(8,) * 4,
        encoder_layers_per_block=1,
        encoder_norm_num_groups=4,
        decoder_block_out_channels=(8,) * 4,
        decoder_layers_per_block=1,
        decoder_norm_num_groups=4,
    )


PICTURES = {
    "sana": Case(
        diffusers.SanaPipeline, "sana", flow(diffusers.SanaTransformer2DModel, **SANA), SANA_CALL, pooled=False
    ),
    "sprint": Case(diffusers.SanaSprintPipeline, "sana", sprint, SANA_CALL, pooled=False),
    "prx": Case(diffusers.PRXPipeline, "sana", prx, SANA_CALL, pooled=False),
    "kandinsky": Case(
        diffusers.KandinskyV22Pipeline, "movq", kandinsky, KANDINSKY_CALL, pooled=False, component="movq"
    ),
}
FROM_PICTURES = {
    "sprint-image": Case(
        diffusers.SanaSprintImg2ImgPipeline,
        "sana",
        sprint,
        {**SANA_CALL, "image": picture(32, 64), "strength": 0.9},
        pooled=False,
    ),
    "kandinsky-image": Case(
        diffusers.KandinskyV22Img2ImgPipeline,
        "movq",
        kandinsky,
        {**KANDINSKY_CALL, "image": picture(64, 64), "strength": 0.9},
        pooled=False,
        component="movq",
    ),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    torch.manual_seed(13)
    made = {"sana": sana, "movq": movq, "cascade": paella, "rae": rae, "consistency": consistency_decoder}
    modules = {name: make().eval() for name, make in made.items()}
    with serve(modules, RECIPES, tmp_path_factory.mktemp("pictures")) as found:
        yield found


@pytest.mark.parametrize("name", PICTURES)
def test_a_latent_of_a_pipeline_gives_its_picture(served: Families, name: str) -> None:
    """The latent that a pipeline hands out is decoded to the picture that the pipeline gives with its own VAE."""
    case = PICTURES[name]
    module = served.modules[case.family]
    pixels, latents = case.run(module, "np"), case.run(module, "latent")
    assert pixels.std() > 0.02, "the picture must have something to compare"
    found = remote_decode(f"{served.url}/{case.family}", latents, do_scaling=True, output_type="pt", return_type="pt")
    unit = (found * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(unit, torch.from_numpy(pixels), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*PICTURES, *FROM_PICTURES])
def test_a_remote_vae_in_a_pipeline(served: Families, name: str) -> None:
    """A pipeline with a RemoteVAE gives the pixels that it gives with the VAE itself."""
    case = {**PICTURES, **FROM_PICTURES}[name]
    found, expected = (case.run(vae) for vae in (RemoteVAE(f"{served.url}/{case.family}"), served.modules[case.family]))
    assert float(expected.std()) > 0.02, "the picture must have something to compare"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["sana", "movq"])
def test_the_fallback_takes_its_place(served: Families, name: str) -> None:
    """If the server does not answer, the same VAE gives the same latent and the same pixels."""
    module = served.modules[name]
    pixels = torch.rand((1, 3, 24, 40), generator=torch.Generator().manual_seed(7)) * 2 - 1
    how = {"force_not_quantize": True} if name == "movq" else {}
    with pytest.warns(RuntimeWarning, match="the fallback"):
        alone = RemoteVAE("http://127.0.0.1:9", timeout=0.5, fallback=module)
    with pytest.warns(RuntimeWarning, match="the fallback"):
        latent = alone.encode(pixels)
    with pytest.warns(RuntimeWarning, match="the fallback"):
        picture = alone.decode(latent.latents, **how).sample
    there = RemoteVAE(f"{served.url}/{name}")
    torch.testing.assert_close(there.encode(pixels).latent, latent.latent, atol=1e-5, rtol=0)
    torch.testing.assert_close(there.decode(latent.latent).sample, picture, atol=1e-5, rtol=0)


def test_stage_b_of_stable_cascade(served: Families) -> None:
    """A latent of stage B is multiplied by the factor and decoded to pixels in [0, 1], as StableCascadeDecoderPipeline
    does; with a RemoteVAE as its `vqgan` too."""
    module = served.modules["cascade"]
    latents = torch.randn((2, 4, 6, 10), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = module.decode(module.config.scale_factor * latents).sample.clamp(0, 1)
    with Client(served.url) as client:
        found = client.decode(latents, model="cascade", do_scaling=True, output_type="pt")
    torch.testing.assert_close((found * 0.5 + 0.5).clamp(0, 1), expected, atol=1e-5, rtol=0)
    there = RemoteVAE(f"{served.url}/cascade")
    again = there.decode(there.config.scale_factor * latents).sample.clamp(0, 1)
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_noise_of_the_consistency_decoder(served: Families, batch: int) -> None:
    """With a seed it gives the pixels that it gives with a generator of that seed; another seed gives others."""
    module = served.modules["consistency"]
    latents = torch.randn((batch, 4, 3, 5), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        z = latents / module.config.scaling_factor
        expected = module.decode(z, generator=torch.Generator().manual_seed(6)).sample
    with Client(served.url) as client:
        found, other = (
            client.decode(latents, model="consistency", do_scaling=True, output_type="pt", seed=seed) for seed in (6, 7)
        )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert float((other - expected).abs().max()) > 0.02


def test_the_consistency_decoder_encodes_as_its_stable_diffusion(served: Families) -> None:
    """Its latent is the scaled mean of the posterior."""
    module = served.modules["consistency"]
    pixels = torch.rand((1, 3, 24, 40), generator=torch.Generator().manual_seed(7)) * 2 - 1
    with torch.no_grad():
        expected = module.encode(pixels).latent_dist.mode() * module.config.scaling_factor
    with Client(served.url) as client:
        found = client.encode(pixels, model="consistency", posterior="mode", do_scaling=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_remote_vae_has_the_pixels_of_a_representation_autoencoder(served: Families) -> None:
    """Its pixels are in [0, 1], and so are those that a RemoteVAE gives and takes."""
    module, there = served.modules["rae"], RemoteVAE(f"{served.url}/rae")
    latents = torch.randn((2, 64, 4, 4), generator=torch.Generator().manual_seed(2))
    unit = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        picture, latent = module.decode(latents).sample, module.encode(unit).latent
    torch.testing.assert_close(there.decode(latents).sample, picture, atol=1e-5, rtol=0)
    torch.testing.assert_close(there.encode(unit).latent, latent, atol=1e-5, rtol=1e-5)


def test_pictures_of_one_size_only(served: Families) -> None:
    """A representation autoencoder takes one size; another is refused with what was sent and what is right."""
    with Client(served.url) as client:
        picture = client.decode(torch.zeros(1, 64, 4, 4), model="rae", output_type="pt")
        assert picture.shape == (1, 3, 32, 32)
        assert client.encode(picture, model="rae").shape == (1, 64, 4, 4)
        with pytest.raises(LatentMismatch, match=r"has 5 columns; model 'rae' takes 4 only, so send 4"):
            client.decode(torch.zeros(1, 64, 4, 5), model="rae")
        with pytest.raises(InvalidImage, match=r"is 40 pixels wide; model 'rae' takes 32 only, so send 32"):
            client.encode(torch.zeros(1, 3, 32, 40), model="rae")
