"""Latents of diffusers' own pipelines: decoded here they give the pixels that the pipeline's own VAE gives."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image

from remote_vae import Client, remote_decode

UNET: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
}
TRANSFORMER: dict[str, Any] = {
    "num_layers": 1,
    "num_attention_heads": 2,
    "pooled_projection_dim": 16,
}


def embeds(*shape: int) -> torch.Tensor:
    """What a text encoder would have given for a prompt."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def stable_diffusion(vae: Any) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        unet=UNet2DConditionModel(**UNET),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl(vae: Any) -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        **UNET,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
    )


def stable_diffusion_3(vae: Any) -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        **TRANSFORMER,
        in_channels=16,
        out_channels=16,
        attention_head_dim=8,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux(vae: Any) -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        **TRANSFORMER, num_single_layers=1, attention_head_dim=16, joint_attention_dim=16, axes_dims_rope=(4, 4, 8)
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )


def hunyuan_video(vae: Any) -> HunyuanVideoPipeline:
    transformer = HunyuanVideoTransformer3DModel(
        **TRANSFORMER,
        attention_head_dim=10,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        rope_axes_dim=(2, 4, 4),
    )
    return HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder_2=None,
        tokenizer_2=None,
    )


def prompt(*, batch: int, pooled: bool, mask: bool = False) -> dict[str, torch.Tensor]:
    found = {"prompt_embeds": embeds(batch, 7, 16)}
    if pooled:
        found["pooled_prompt_embeds"] = embeds(batch, 16)
    if mask:
        found["prompt_attention_mask"] = torch.ones(batch, 7)
    return found


def run(build: Any, vae: Any, output_type: str, **arguments: Any) -> Any:
    """The pipeline's result: its network, its noise and its prompt are the same in every run."""
    torch.manual_seed(3)
    pipeline = build(vae)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(4)
    return pipeline(
        num_inference_steps=2, guidance_scale=1.0, generator=generator, output_type=output_type, **arguments
    )[0]


PICTURES = {
    "sd": (stable_diffusion, {"pooled": False}),
    "xl": (stable_diffusion_xl, {"pooled": True}),
    "play": (stable_diffusion_xl, {"pooled": True}),
    "three": (stable_diffusion_3, {"pooled": True}),
    "flux": (flux, {"pooled": True}),
}
SIZE = {"height": 48, "width": 80}


def check_pictures(url: str, latents: torch.Tensor, pixels: torch.Tensor, **how: Any) -> None:
    """Raw and quantised tensors, and the PNG of a single latent, against a pipeline's pictures in [0, 1].

    A PNG of several latents shows the first, decoded alone: sums over another batch differ in the last bit.
    """
    expected = (pixels.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    assert expected.std() > 5, "the picture must have something to compare"
    raw = remote_decode(url, latents, output_type="pt", return_type="pt", **how)
    torch.testing.assert_close((raw * 0.5 + 0.5).clamp(0, 1), pixels, atol=1e-5, rtol=0)
    quantised = remote_decode(url, latents, output_type="pt", return_type="pt", partial_postprocess=True, **how)
    assert np.array_equal(quantised.numpy(), expected)
    if len(latents) == 1:
        picture = remote_decode(url, latents, image_format="png", **how)
        assert np.array_equal(np.asarray(picture), expected[0])


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", PICTURES)
def test_a_pipeline_without_its_vae_gives_the_same_pictures(families: Any, name: str, batch: int) -> None:
    """A pipeline with vae=None and this server gives the pictures of the pipeline with its VAE, for every family."""
    (build, kind), module = PICTURES[name], families.modules[name]
    words = prompt(batch=batch, **kind)
    pixels = run(build, module, "pt", **words, **SIZE)
    latents = run(build, None, "latent", **words, **SIZE)
    sizes = SIZE if name == "flux" else {}
    check_pictures(f"{families.url}/{name}", latents, pixels, do_scaling=True, **sizes)
    if name != "play":  # its statistics have no parameters
        factors = {"scaling_factor": module.config.scaling_factor, "shift_factor": module.config.shift_factor}
        check_pictures(f"{families.url}/{name}", latents, pixels, **factors, **sizes)


@pytest.mark.parametrize("size", [(48, 80), (56, 89)])
def test_unpacked_and_floored_flux_latents(families: Any, size: tuple[int, int]) -> None:
    """Flux latents give the pipeline's pictures packed or unpacked, at sizes that its pipeline floors to 16 too."""
    words, sizes = prompt(batch=1, pooled=True), dict(zip(("height", "width"), size, strict=True))
    pixels = run(flux, families.modules["flux"], "pt", **words, **sizes)
    latents = run(flux, None, "latent", **words, **sizes)
    assert latents.shape == (1, 3 * 5, 64)
    check_pictures(f"{families.url}/flux", latents, pixels, **sizes)
    check_pictures(f"{families.url}/flux", FluxPipeline._unpack_latents(latents, *size, 8), pixels)


PREVIEWS = {"tiny": (0.18215, 0.0), "tinyflux": (0.3611, 0.1159)}  # the constants of the models that they stand for


@pytest.mark.parametrize("name", PREVIEWS)
def test_previews(families: Any, name: str) -> None:
    """A preview gives what its pipeline gives with it, whether the client scales, lets scale, or names the factors."""
    build, kind = PICTURES["sd" if name == "tiny" else "flux"]
    words = prompt(batch=1, **kind)
    pixels = run(build, families.modules[name], "pt", **words, **SIZE)
    latents = run(build, None, "latent", **words, **SIZE)
    sizes = SIZE if name == "tinyflux" else {}
    factor, shift = PREVIEWS[name]
    url = f"{families.url}/{name}"
    check_pictures(url, latents, pixels, do_scaling=True, **sizes)
    check_pictures(url, latents, pixels, scaling_factor=factor, shift_factor=shift or None, **sizes)
    raw = remote_decode(url, latents / factor + shift, do_scaling=False, output_type="pt", return_type="pt", **sizes)
    torch.testing.assert_close((raw * 0.5 + 0.5).clamp(0, 1), pixels, atol=1e-5, rtol=0)


VIDEO = {**prompt(batch=1, pooled=True, mask=True), "height": 32, "width": 48, "num_frames": 25}


def test_a_video_pipeline_without_its_vae_gives_the_same_frames(families: Any) -> None:
    """HunyuanVideoPipeline with vae=None and this server gives its own frames, framewise decoding included."""
    module, url = families.modules["video"], f"{families.url}/video"
    frames = run(hunyuan_video, module, "pt", **VIDEO)[0]
    latents = run(hunyuan_video, None, "latent", **VIDEO)
    assert latents.shape == (1, 16, 7, 4, 6)
    check_pictures_of_video(url, latents, frames)
    module.use_framewise_decoding = False
    try:
        whole = run(hunyuan_video, module, "pt", **VIDEO)[0]
    finally:
        module.use_framewise_decoding = True
    assert float((whole - frames).abs().max()) > 1e-3, "framewise decoding must matter at this length"


def check_pictures_of_video(url: str, latents: torch.Tensor, frames: torch.Tensor) -> None:
    expected = (frames.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    assert expected.std() > 5, "the video must have something to compare"
    raw = remote_decode(url, latents, output_type="pt", return_type="pt")
    torch.testing.assert_close((raw[0].transpose(0, 1) * 0.5 + 0.5).clamp(0, 1), frames, atol=1e-5, rtol=0)
    quantised = remote_decode(url, latents, output_type="pt", return_type="pt", partial_postprocess=True)
    assert np.array_equal(quantised.numpy(), expected)


def test_mp4_of_a_video_pipeline(families: Any) -> None:
    """The MP4 has every frame of the pipeline, in order, as close as its compression lets them be."""
    import av

    frames = run(hunyuan_video, families.modules["video"], "pil", **VIDEO)[0]
    latents = run(hunyuan_video, None, "latent", **VIDEO)
    with Client(families.url) as client:
        data = client.decode(latents, model="video", do_scaling=True, output_type="mp4")
    with av.open(BytesIO(data)) as container:
        found = [frame.to_image() for frame in container.decode(video=0)]
    assert len(found) == len(frames) == 25
    ours, theirs = luma(found), luma(frames)
    distance = np.abs(ours[:, None] - theirs[None]).mean(axis=(2, 3))
    assert distance.diagonal().max() < 4
    assert distance.argmin(axis=1)[8:].tolist() == list(range(8, 25))  # the first ones are too much alike


def luma(frames: list[Image.Image]) -> np.ndarray:
    """*Shapes*: [F,H,W]; chroma is halved in the video and would be no measure."""
    return np.stack([np.asarray(frame.convert("L"), dtype=np.float64) for frame in frames])
