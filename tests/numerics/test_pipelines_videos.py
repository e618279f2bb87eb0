"""Models for videos, and HunyuanImage's refiner, against their own pipelines: both ways, and with a RemoteVAE."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLHunyuanVideo15, EulerDiscreteScheduler
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines.minimax_h3.decoders import MiniMaxH3VideoDecodeStep
from diffusers.modular_pipelines.minimax_h3.encoders import encode_vae_condition

from remote_vae import Client, RemoteVAE, remote_decode

from .cases.autoencoder_kl import kl
from .cases.frames import tiny_svd
from .cases.hunyuan import tiny_refiner
from .cases.kandinsky import sr
from .cases.minimax import PIXEL_MEAN, PIXEL_STD, tiny_minimax
from .conftest import TINY_VIDEO, Families, serve
from .pipelines import UNET, Case, embeds, flow, picture, unet

# Stable Video Diffusion's scheduler hands tensors to numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")
SIZE = {"height": 32, "width": 48}
VIDEO = {**SIZE, "num_frames": 9}
RECIPES = {
    "kandinsky": "kandinsky5-video",
    "sr": "kandinsky6-sr",
    "refiner": "hunyuan-image-refiner",
    "fifteen": "hunyuanvideo-1.5",
    "svd": "svd",
    "animate": "animatediff",
    "minimax": "minimax-h3",
}
KANDINSKY: dict[str, Any] = {
    "in_visual_dim": 16,
    "out_visual_dim": 16,
    "in_text_dim": 16,
    "in_text_dim2": 16,
    "time_dim": 8,
    "model_dim": 12,
    "ff_dim": 16,
    "num_text_blocks": 1,
    "num_visual_blocks": 1,
    "axes_dims": (4, 4, 4),
}
KANDINSKY_CALL = {
    "prompt_embeds_qwen": embeds(1, 7, 16),
    "prompt_embeds_clip": embeds(1, 16),
    "prompt_cu_seqlens": torch.tensor([0, 7], dtype=torch.int32),
    "guidance_scale": 1.0,
    **VIDEO,
}
HUNYUAN: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
    "rope_axes_dim": (4, 4, 4),
}
FIFTEEN: dict[str, Any] = {
    **HUNYUAN,
    "in_channels": 33,
    "out_channels": 16,
    "text_embed_2_dim": 16,
    "image_embed_dim": 16,
}
MASK = torch.ones(1, 7)


@dataclass(frozen=True)
class Plain(Case):
    """A pipeline that is called with nothing but `call`."""

    def arguments(self, batch: int = 1) -> dict[str, Any]:
        return dict(self.call)


class SVD(Plain):
    """Its image encoder cannot be left out, so one stands in that gives the same embedding for every image."""

    def build(self, vae: Any) -> Any:
        torch.manual_seed(3)
        pipeline = self.cls(vae, None, **self.networks(), feature_extractor=None)
        pipeline._encode_image = lambda image, device, videos, guided: embeds(1, 1, 16)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def spatio_temporal() -> dict[str, Any]:
    network = diffusers.UNetSpatioTemporalConditionModel(
        down_block_types=("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
        up_block_types=("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
        block_out_channels=(32, 32),
        layers_per_block=1,
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12,
        cross_attention_dim=16,
        num_attention_heads=2,
    )
    return {
        "unet": network,
        "scheduler": EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous"),
    }


def with_motion() -> dict[str, Any]:
    adapter = diffusers.MotionAdapter(
        block_out_channels=UNET["block_out_channels"],
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
    )
    return {**unet()(), "motion_adapter": adapter}


def guided(networks: Callable[[], dict[str, Any]], guider: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {**networks(), "guider": guider}


CASES: dict[str, Case] = {
    "kandinsky": Plain(
        diffusers.Kandinsky5T2VPipeline,
        "kandinsky",
        flow(diffusers.Kandinsky5Transformer3DModel, **KANDINSKY),
        KANDINSKY_CALL,
    ),
    "fifteen": Plain(
        diffusers.HunyuanVideo15Pipeline,
        "fifteen",
        guided(flow(diffusers.HunyuanVideo15Transformer3DModel, **FIFTEEN), ClassifierFreeGuidance(enabled=False)),
        {
            "prompt_embeds": embeds(1, 7, 16),
            "prompt_embeds_mask": MASK,
            "prompt_embeds_2": embeds(1, 7, 16),
            "prompt_embeds_mask_2": MASK,
            **VIDEO,
        },
    ),
    "svd": SVD(
        diffusers.StableVideoDiffusionPipeline,
        "svd",
        spatio_temporal,
        {"image": picture(32, 48), "max_guidance_scale": 1.0, **SIZE, "num_frames": 5},
    ),
    "svd-in-chunks": SVD(
        diffusers.StableVideoDiffusionPipeline,
        "svd",
        spatio_temporal,
        {"image": picture(32, 48), "max_guidance_scale": 1.0, **SIZE, "num_frames": 6, "decode_chunk_size": 4},
    ),
    "animate": Case(
        diffusers.AnimateDiffPipeline,
        "animate",
        with_motion,
        {**SIZE, "num_frames": 6, "decode_chunk_size": 4},
        pooled=False,
    ),
    "kandinsky-image": Plain(
        diffusers.Kandinsky5I2VPipeline,
        "kandinsky",
        flow(diffusers.Kandinsky5Transformer3DModel, **KANDINSKY, visual_cond=True),
        {**KANDINSKY_CALL, "image": picture(32, 48), "num_frames": 17},
    ),
    "animate-video": Case(
        diffusers.AnimateDiffVideoToVideoPipeline,
        "animate",
        with_motion,
        {"video": [picture(32, 48, darkest=level) for level in (0, 50, 100)], **SIZE},
        pooled=False,
    ),
    "refiner": Plain(
        diffusers.HunyuanImageRefinerPipeline,
        "refiner",
        flow(
            diffusers.HunyuanImageTransformer2DModel,
            **HUNYUAN,
            num_single_layers=1,
            in_channels=128,
            out_channels=64,
            patch_size=(1, 1, 1),
            guidance_embeds=True,
        ),
        {
            "image": picture(32, 64),
            "prompt_embeds": embeds(1, 7, 16),
            "prompt_embeds_mask": MASK,
            "height": 32,
            "width": 64,
        },
    ),
}
# What the others show is more than one decode of the latent that they hand out.
HANDED_OUT = ("kandinsky", "fifteen", "svd", "animate", "animate-video", "refiner")


def make_modules() -> dict[str, Any]:
    torch.manual_seed(17)
    modules = {
        "kandinsky": AutoencoderKLHunyuanVideo(**TINY_VIDEO, latent_channels=16, scaling_factor=0.47),
        "sr": sr(),
        "refiner": tiny_refiner(),
        "fifteen": AutoencoderKLHunyuanVideo15(
            latent_channels=16, block_out_channels=(32,) * 5, layers_per_block=1, scaling_factor=0.7
        ),
        "svd": tiny_svd(),
        "animate": kl(scaling_factor=0.31)(),
        "minimax": tiny_minimax(),
    }
    return {name: module.eval() for name, module in modules.items()}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    with serve(make_modules(), RECIPES, tmp_path_factory.mktemp("videos")) as found:
        yield found


def unit(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels * 0.5 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("name", HANDED_OUT)
def test_a_latent_of_a_pipeline_gives_its_pixels(videos: Families, name: str) -> None:
    """The latent that a pipeline hands out is decoded to the pixels that the pipeline gives."""
    case = CASES[name]
    module, url = videos.modules[case.family], f"{videos.url}/{case.family}"
    pixels, latents = case.run(module, "pt"), case.run(module, "latent")
    assert float(pixels.std()) > 0.02, "there must be something to compare"
    found = unit(remote_decode(url, latents, do_scaling=True, output_type="pt", return_type="pt"))
    torch.testing.assert_close(found.transpose(1, 2) if found.ndim == 5 else found, pixels, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_a_remote_vae_in_a_pipeline(videos: Families, name: str) -> None:
    """A pipeline with a RemoteVAE gives the pixels that it gives with the VAE itself."""
    case = CASES[name]
    remote = RemoteVAE(f"{videos.url}/{case.family}")
    found, expected = case.run(remote), case.run(videos.modules[case.family])
    assert float(expected.std()) > 0.02, "there must be something to compare"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_fallback_for_stable_video_diffusion(videos: Families) -> None:
    """A server that does not answer is replaced by a local VAE, which is told the number of frames."""
    case = CASES["svd-in-chunks"]
    module = videos.modules[case.family]
    with pytest.warns(RuntimeWarning, match="the fallback"):
        found = case.run(RemoteVAE("http://127.0.0.1:9", timeout=0.5, fallback=module))
    torch.testing.assert_close(found, case.run(module), atol=1e-5, rtol=0)


def test_super_resolution_of_kandinsky6(videos: Families) -> None:
    """Its pipeline's own methods decode and encode to the same, for pixels whose range is a little smaller."""
    owner = SimpleNamespace(vae=videos.modules["sr"])
    methods = diffusers.Kandinsky6SRPipeline
    latents = torch.randn((1, 64, 3, 2, 3), generator=torch.Generator().manual_seed(2)) * 3
    pixels = torch.rand((1, 3, 9, 32, 48), generator=torch.Generator().manual_seed(7)) * 2 - 1
    with torch.no_grad():
        video, encoded = methods.decode_latents(owner, latents), methods.encode_video(owner, pixels)
    found = remote_decode(f"{videos.url}/sr", latents, do_scaling=True, output_type="pt", return_type="pt")
    torch.testing.assert_close(found, video, atol=1e-5, rtol=0)
    with Client(videos.url) as client:
        torch.testing.assert_close(client.encode(pixels, model="sr", do_scaling=True), encoded, atol=1e-5, rtol=0)


def test_a_remote_vae_has_the_pixels_of_the_vae(videos: Families) -> None:
    """With a RemoteVAE the steps of MiniMax-H3 and Kandinsky 6's super-resolution give the same, both ways."""
    draws = [torch.Generator().manual_seed(seed) for seed in (2, 7)]
    minimax, found = videos.modules["minimax"], []
    latents = torch.randn((1, 24, 3, 2, 3), generator=draws[0])
    levels = torch.randint(0, 256, (1, 3, 22, 32, 48), generator=draws[1]).byte()
    for vae in (minimax, RemoteVAE(f"{videos.url}/minimax")):
        decoding = MiniMaxH3VideoDecodeStep().init_pipeline()
        decoding.update_components(vae=vae)
        with torch.no_grad():
            condition = encode_vae_condition(vae, levels, PIXEL_MEAN, PIXEL_STD)
        found.append((decoding(latents=latents, output_type="pt", output="videos"), condition))
    methods = diffusers.Kandinsky6SRPipeline
    latents = torch.randn((1, 64, 3, 2, 3), generator=draws[0]) * 3
    pixels = torch.rand((1, 3, 9, 32, 48), generator=draws[1]) * 2 - 1
    for vae in (videos.modules["sr"], RemoteVAE(f"{videos.url}/sr")):
        owner = SimpleNamespace(vae=vae)
        with torch.no_grad():
            found.append((methods.decode_latents(owner, latents), methods.encode_video(owner, pixels)))
    for local, remote in (found[:2], found[2:]):
        for ours, theirs in zip(remote, local, strict=True):
            assert float(theirs.std()) > 0.02, "there must be something to compare"
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_minimax_decodes_in_its_tiles(videos: Families) -> None:
    """A picture of two by two tiles is decoded as the step of the modular pipeline does it, with its tiles."""
    module = videos.modules["minimax"]
    latents = torch.randn((1, 24, 3, 17, 18), generator=torch.Generator().manual_seed(2))
    decoding = MiniMaxH3VideoDecodeStep().init_pipeline()
    decoding.update_components(vae=module)
    expected = decoding(latents=latents, output_type="pt", output="videos")
    found = remote_decode(f"{videos.url}/minimax", latents, do_scaling=True, output_type="pt", return_type="pt")
    torch.testing.assert_close(unit(found).transpose(1, 2), expected, atol=1e-5, rtol=0)
    module.use_tiling = False
    try:
        untiled = decoding(latents=latents, output_type="pt", output="videos")
    finally:
        module.use_tiling = True
    assert float((untiled - expected).abs().max()) > 1e-3, "the tiles must make a difference"


@pytest.mark.parametrize("frames", [1, 22])
def test_minimax_encodes_as_its_pipeline(videos: Families, frames: int) -> None:
    """A keyframe or a video gives the latent that conditions the pipeline: the same draw every time, in 11 bits."""
    levels = torch.randint(0, 256, (1, 3, frames, 32, 48), generator=torch.Generator().manual_seed(7)).byte()
    with torch.no_grad():
        expected = encode_vae_condition(videos.modules["minimax"], levels, PIXEL_MEAN, PIXEL_STD)
    pixels = levels.float() / 255 * 2 - 1
    with Client(videos.url) as client:
        found = client.encode(pixels if frames > 1 else pixels[:, :, 0], model="minimax", do_scaling=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_frames_are_decoded_in_strips(videos: Families) -> None:
    """Each frame of AnimateDiff is a picture, for which all plans are there, both ways."""
    pixels = torch.rand((1, 3, 3, 64, 48), generator=torch.Generator().manual_seed(7)) * 2 - 1
    with Client(videos.url) as client:
        plans = ("whole", "strips", "strips-recompute")
        latents = [client.encode(pixels, model="animate", posterior="mode", plan=plan) for plan in plans]
        assert latents[0].shape == (1, 4, 3, 8, 6)
        found = [client.decode(latents[0], model="animate", output_type="pt", plan=plan) for plan in plans]
        parameters = client.encode(pixels, model="animate", posterior="parameters")
    torch.testing.assert_close(parameters[:, :4], latents[0], atol=1e-5, rtol=1e-5)
    for whole, *strips in (latents, found):
        assert float(whole.std()) > 0.02, "there must be something to compare"
        for one in strips:
            torch.testing.assert_close(one, whole, atol=1e-5, rtol=1e-5)
