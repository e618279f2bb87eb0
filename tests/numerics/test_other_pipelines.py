"""The families that `test_drop_in` leaves out, against their own pipelines: both ways, and with a RemoteVAE."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage
from diffusers.modular_pipelines.flux3.decoders import Flux3DecodeStep
from diffusers.modular_pipelines.flux3.encoders import Flux3VaeEncoderStep

from remote_vae import Client, RemoteVAE, remote_decode
from remote_vae.errors import InvalidValue

from .conftest import THREE_BLOCKS, TINY, WAN_22, Families, serve, tiny_wan
from .pipelines import FLUX2_FLOW, IMAGE, OTHERS, PICTURES, SIZE, Case, embeds, flow, picture
from .pipelines_of_wan import QWEN, WAN

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # ERNIE-Image's pipeline hands tensors to numpy
    pytest.mark.filterwarnings("ignore:The configuration file of the vae"),  # the x4 upscaler's, of the factor below
]
RECIPES = {
    "ernie": "ernie-image",
    "fibo": "fibo2",
    "bria": "bria3.2",
    "upscaler": "sd-x4-upscaler",
    "flux3": "flux3",
    "small": "flux2-small-decoder",
    "qwen": "qwen-image",
    "wan": "wan2.1",
    "wan5b": "wan2.2-5b",
}
PLANS = ("whole", "strips", "strips-recompute")
ERNIE: dict[str, Any] = {
    "hidden_size": 24,
    "num_attention_heads": 2,
    "num_layers": 1,
    "ffn_hidden_size": 16,
    "in_channels": 32,
    "out_channels": 32,
    "text_in_dim": 16,
    "rope_axes_dim": (4, 4, 4),
}
FIBO: dict[str, Any] = {
    "in_channels": 8,
    "dim": 24,
    "n_layers": 5,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "cap_feat_dim": 16,
    "injection_layer_ids": (0, 1, 2, 3, 4),
    "perceiver_num_layers": 1,
    "axes_dims": (4, 4, 4),
}
BRIA: dict[str, Any] = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": [4, 4, 4],
}
WAN_CALL = {"height": 32, "width": 48, "num_frames": 9, "negative_prompt_embeds": None}
QWEN_CALL = {"prompt_embeds_mask": torch.ones(1, 7), "true_cfg_scale": 1.0}
FIBO_CALL = {**SIZE, "prompt_embeds": embeds(1, 6, 7, 16)}
FIBO_FLOW = flow(diffusers.BriaFibo2Transformer2DModel, **FIBO)
CASES = {
    "ernie": Case(
        diffusers.ErnieImagePipeline, "ernie", flow(diffusers.ErnieImageTransformer2DModel, **ERNIE), SIZE, pooled=False
    ),
    "fibo": Case(diffusers.BriaFibo2Pipeline, "fibo", FIBO_FLOW, FIBO_CALL, pooled=False),
    "bria": Case(diffusers.BriaPipeline, "bria", flow(diffusers.BriaTransformer2DModel, **BRIA), SIZE, pooled=False),
    "upscaler": replace(OTHERS["upscale"], family="upscaler"),
    "qwen": Case(
        diffusers.QwenImagePipeline,
        "qwen",
        flow(diffusers.QwenImageTransformer2DModel, **QWEN),
        {**SIZE, **QWEN_CALL},
        pooled=False,
    ),
    "small": Case(diffusers.Flux2Pipeline, "small", FLUX2_FLOW, SIZE, pooled=False),
}
VIDEOS = {
    "wan": Case(diffusers.WanPipeline, "wan", flow(diffusers.WanTransformer3DModel, **WAN), WAN_CALL, pooled=False),
    "wan5b": Case(
        diffusers.WanPipeline,
        "wan5b",
        flow(diffusers.WanTransformer3DModel, **{**WAN, "in_channels": 48, "out_channels": 48}),
        {**WAN_CALL, "height": 64, "width": 96},
        pooled=False,
    ),
}
OWN_CODE = ("qwen", *VIDEOS)  # what no strips are known for
EDITS = {
    "qwen-image": Case(
        diffusers.QwenImageImg2ImgPipeline,
        "qwen",
        flow(diffusers.QwenImageTransformer2DModel, **QWEN),
        {**IMAGE, **SIZE, **QWEN_CALL},
        pooled=False,
    ),
    "wan-image": Case(
        diffusers.WanImageToVideoPipeline,
        "wan",
        flow(diffusers.WanTransformer3DModel, **{**WAN, "in_channels": 36}),
        {**WAN_CALL, "image": picture(32, 48)},
        pooled=False,
    ),
    "fibo-edit": replace(CASES["fibo"], call={**FIBO_CALL, "image": picture(64, 80)}),
    "small-edit": replace(OTHERS["flux2-edit"], family="small"),
}


def make_modules() -> dict[str, Any]:
    torch.manual_seed(13)
    modules: dict[str, Any] = {
        "bria": AutoencoderKL(**TINY, latent_channels=4, scaling_factor=0.37),
        # Another factor than the one that the pipeline sets.
        "upscaler": AutoencoderKL(**{**TINY, **THREE_BLOCKS}, latent_channels=4, scaling_factor=0.31),
        "small": AutoencoderKLFlux2(**TINY, latent_channels=8, decoder_block_out_channels=(4, 4, 8, 8)),
    }
    modules |= {"qwen": tiny_wan(AutoencoderKLQwenImage), "wan": tiny_wan(), "wan5b": tiny_wan(**WAN_22)}
    for name in ("ernie", "fibo", "flux3"):
        modules[name] = AutoencoderKLFlux2(**TINY, latent_channels=8)
    for module in modules.values():
        if hasattr(module, "bn"):  # variances so small that an epsilon of 1e-4 or 1e-5 is told apart
            module.bn.running_mean.uniform_(-1, 1)
            module.bn.running_var.uniform_(0.005, 3)
    return {name: module.eval() for name, module in modules.items()}


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    with serve(make_modules(), RECIPES, tmp_path_factory.mktemp("others")) as found:
        yield found


def check_pictures(url: str, latents: torch.Tensor, pixels: torch.Tensor, **how: Any) -> None:
    """A pipeline's pictures in [0, 1]."""
    assert float(pixels.std()) > 0.02, "the picture must have something to compare"
    found = remote_decode(url, latents, do_scaling=True, output_type="pt", return_type="pt", **how)
    torch.testing.assert_close((found * 0.5 + 0.5).clamp(0, 1), pixels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_a_latent_of_a_pipeline_gives_its_picture(others: Families, name: str) -> None:
    """The latent that a pipeline hands out is decoded to the picture that the pipeline gives with its own VAE."""
    case, module = CASES[name], others.modules[name]
    pixels, latents = case.run(module, "pt"), case.run(module, "latent")
    sizes = SIZE if latents.ndim == 3 else {}
    check_pictures(f"{others.url}/{name}", latents, pixels, **sizes)


@pytest.mark.parametrize("name", VIDEOS)
def test_a_latent_of_a_pipeline_gives_its_video(others: Families, name: str) -> None:
    """The latent that a pipeline of videos hands out is decoded to the video that the pipeline gives."""
    case, module = VIDEOS[name], others.modules[name]
    pixels, latents = case.run(module, "pt"), case.run(module, "latent")
    assert pixels.shape[1] == 9
    check_pictures(f"{others.url}/{name}", latents, pixels.transpose(1, 2))


@pytest.mark.parametrize(("name", "ratios"), {"qwen": (8, 1), "wan": (8, 4), "wan5b": (16, 4)}.items())
def test_ratios_and_fallback(others: Families, name: str, ratios: tuple[int, int]) -> None:
    """A RemoteVAE tells the ratios of the server's model, takes the same VAE as its fallback, and refuses others."""
    module, url = others.modules[name], f"{others.url}/{name}"
    vae = RemoteVAE(url, fallback=module)
    assert (vae.spatial_compression_ratio, vae.temporal_compression_ratio) == ratios
    assert vae.temperal_downsample == module.config.temperal_downsample
    with pytest.raises(InvalidValue, match="with 24 latent channels"):
        RemoteVAE(url, fallback=tiny_wan(type(module), 24))
    if name != "qwen":  # its config does not tell how it takes videos
        with pytest.warns(RuntimeWarning, match="the fallback"):
            alone = RemoteVAE("http://127.0.0.1:9", timeout=0.5, fallback=module)
        assert (alone.spatial_compression_ratio, alone.temporal_compression_ratio) == ratios


@pytest.mark.parametrize("name", [*CASES, *VIDEOS, *EDITS])
def test_a_remote_vae_in_a_pipeline(others: Families, name: str) -> None:
    """A pipeline with a RemoteVAE gives the pixels that it gives with the VAE itself."""
    case = {**CASES, **VIDEOS, **EDITS}[name]
    found, expected = (case.run(vae) for vae in (RemoteVAE(f"{others.url}/{case.family}"), others.modules[case.family]))
    assert float(expected.std()) > 0.02, "the picture must have something to compare"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_blocks_of_flux3(others: Families) -> None:
    """What decodes and encodes in the modular pipeline of FLUX.3 gives these pixels and this latent."""
    module, url = others.modules["flux3"], f"{others.url}/flux3"
    latents = torch.randn((2, 32, 3, 5), generator=torch.Generator().manual_seed(2))
    pixels = torch.rand((1, 3, 64, 80), generator=torch.Generator().manual_seed(7)) * 2 - 1
    decoding, encoding = Flux3DecodeStep().init_pipeline(), Flux3VaeEncoderStep().init_pipeline()
    for pipeline in (decoding, encoding):
        pipeline.update_components(vae=module)
    expected = decoding(latents=latents, output_type="pt", output="images")
    check_pictures(url, latents, expected)
    [latent] = encoding(condition_images=[pixels], output="image_cond_latents")
    with Client(url) as client:
        found = client.encode(pixels, do_scaling=True)
    torch.testing.assert_close(found, latent, atol=1e-5, rtol=0)


def test_the_small_decoder_encodes_as_flux2(others: Families) -> None:
    """Its latent is what FLUX.2's pipeline makes of a reference picture."""
    pixels = torch.rand((1, 3, 64, 80), generator=torch.Generator().manual_seed(7)) * 2 - 1
    with torch.no_grad():
        expected = PICTURES["flux2"].build(others.modules["small"])._encode_vae_image(pixels, None)
    with Client(others.url) as client:
        found = client.encode(pixels, model="small", do_scaling=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_fibo2_encodes_to_normalised_cells(others: Families) -> None:
    """Fibo 2's latent of a picture is its pipeline's, and is the decoder's own input if no scaling is asked for."""
    module = others.modules["fibo"]
    pixels = torch.rand((1, 3, 64, 80), generator=torch.Generator().manual_seed(7)) * 2 - 1
    with torch.no_grad():
        [expected] = CASES["fibo"].build(module).prepare_image_latents([pixels], 1, "cpu", torch.float32)
        cells = module.encode(pixels).latent_dist.mode()
        moments = module.encode(pixels).latent_dist.parameters
        decoded = module.decode(cells).sample
    with Client(others.url) as client:
        found = client.encode(pixels, model="fibo", do_scaling=True)
        plain = client.encode(pixels, model="fibo", do_scaling=False)
        parameters = client.encode(pixels, model="fibo", posterior="parameters")
    assert found.shape == (1, 8, 8, 10)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain, cells, atol=1e-5, rtol=0)
    torch.testing.assert_close(parameters, moments, atol=1e-5, rtol=0)
    for latent, scaled in ((found, True), (plain, False)):
        again = remote_decode(f"{others.url}/fibo", latent, do_scaling=scaled, output_type="pt", return_type="pt")
        torch.testing.assert_close(again, decoded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in OWN_CODE])
def test_they_run_in_strips(others: Families, name: str) -> None:
    """Their layers run in exact strips, both ways."""
    pixels = torch.rand((1, 3, 96, 64), generator=torch.Generator().manual_seed(7)) * 2 - 1
    with Client(others.url) as client:
        card = next(card for card in client.models() if card["name"] == name)
        assert card["executor"] == "strips"
        latents = [client.encode(pixels, model=name, posterior="mode", plan=plan) for plan in PLANS]
        found = [client.decode(latents[0], model=name, output_type="pt", plan=plan) for plan in PLANS]
    for whole, *strips in (latents, found):
        assert float(whole.std()) > 0.02, "there must be something to compare"
        for one in strips:
            torch.testing.assert_close(one, whole, atol=1e-5, rtol=1e-5)
