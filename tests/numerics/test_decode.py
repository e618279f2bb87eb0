"""Latents of diffusers' own pipelines: decoded here they give the pixels that the pipeline's own VAE gives."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2Pipeline, FluxPipeline
from einops import rearrange
from PIL import Image

from remote_vae import Client, remote_decode
from remote_vae.errors import InvalidValue

from .pipelines import KLEIN, PICTURES, SIZE, VIDEO


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
    case, module = PICTURES[name], families.modules[name]
    pixels = case.run(module, "pt", batch=batch)
    latents = case.run(None, "latent", batch=batch)
    sizes = SIZE if name in ("flux", "flux2") else {}
    check_pictures(f"{families.url}/{name}", latents, pixels, do_scaling=True, **sizes)
    if name not in ("play", "flux2"):  # its statistics have no parameters
        factors = {"scaling_factor": module.config.scaling_factor, "shift_factor": module.config.shift_factor}
        if name == "cog":  # its pipelines leave the shift out, which is 0 in the weights' config
            del factors["shift_factor"]
        check_pictures(f"{families.url}/{name}", latents, pixels, **factors, **sizes)


@pytest.mark.parametrize("size", [(48, 80), (56, 89)])
def test_unpacked_and_floored_flux_latents(families: Any, size: tuple[int, int]) -> None:
    """Flux latents give the pipeline's pictures packed or unpacked, at sizes that its pipeline floors to 16 too."""
    case, sizes = PICTURES["flux"], dict(zip(("height", "width"), size, strict=True))
    pixels = case.run(families.modules["flux"], "pt", **sizes)
    latents = case.run(None, "latent", **sizes)
    assert latents.shape == (1, 3 * 5, 64)
    check_pictures(f"{families.url}/flux", latents, pixels, **sizes)
    check_pictures(f"{families.url}/flux", FluxPipeline._unpack_latents(latents, *size, 8), pixels)


def test_latents_of_flux2(families: Any) -> None:
    """FLUX.2's latents give the pipeline's pictures as tokens, as patches, and as cells, of one picture or several."""
    case, url = PICTURES["flux2"], f"{families.url}/flux2"
    pixels = case.run(families.modules["flux2"], "pt", batch=2)
    tokens = case.run(None, "latent", batch=2)
    assert tokens.shape == (2, 3 * 5, 32)
    patches = rearrange(tokens, "b (h w) k -> b k h w", h=3)
    cells = Flux2Pipeline._unpatchify_latents(patches)
    for latents in (patches, cells):
        check_pictures(url, latents, pixels, do_scaling=True)
        check_pictures(url, latents[0], pixels[:1], do_scaling=True)
    check_pictures(url, tokens[None], pixels, do_scaling=True, **SIZE)


def test_latents_of_flux2_klein(families: Any) -> None:
    """FLUX.2 klein's latents, the decoder's own input, give its pictures whether scaling is asked for or not."""
    module = families.modules["klein"]
    pixels, latents = (KLEIN.run(module, kind) for kind in ("pt", "latent"))
    assert latents.shape == (1, 8, 6, 10)
    for how in ({"do_scaling": True}, {"do_scaling": False}):
        check_pictures(f"{families.url}/klein", latents, pixels, **how)
    with pytest.raises(InvalidValue, match="not scaled; leave scaling_factor and shift_factor out"):
        remote_decode(f"{families.url}/klein", latents, scaling_factor=0.5)


PREVIEWS = {"tiny": (0.18215, 0.0), "tinyflux": (0.3611, 0.1159)}  # the constants of the models that they stand for


@pytest.mark.parametrize("name", PREVIEWS)
def test_previews(families: Any, name: str) -> None:
    """A preview gives what its pipeline gives with it, whether the client scales, lets scale, or names the factors."""
    case = PICTURES["sd" if name == "tiny" else "flux"]
    pixels = case.run(families.modules[name], "pt")
    latents = case.run(None, "latent")
    sizes = SIZE if name == "tinyflux" else {}
    factor, shift = PREVIEWS[name]
    url = f"{families.url}/{name}"
    check_pictures(url, latents, pixels, do_scaling=True, **sizes)
    check_pictures(url, latents, pixels, scaling_factor=factor, shift_factor=shift or None, **sizes)
    raw = remote_decode(url, latents / factor + shift, do_scaling=False, output_type="pt", return_type="pt", **sizes)
    torch.testing.assert_close((raw * 0.5 + 0.5).clamp(0, 1), pixels, atol=1e-5, rtol=0)


def test_a_video_pipeline_without_its_vae_gives_the_same_frames(families: Any) -> None:
    """HunyuanVideoPipeline with vae=None and this server gives its own frames, framewise decoding included."""
    module, url = families.modules["video"], f"{families.url}/video"
    frames = VIDEO.run(module, "pt")[0]
    latents = VIDEO.run(None, "latent")
    assert latents.shape == (1, 16, 7, 4, 6)
    check_pictures_of_video(url, latents, frames)
    module.use_framewise_decoding = False
    try:
        whole = VIDEO.run(module, "pt")[0]
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

    frames = VIDEO.run(families.modules["video"], "pil")[0]
    latents = VIDEO.run(None, "latent")
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
    """By BT.601, as a small video has it; chroma is halved there and would be no measure. *Shapes*: [F,H,W]."""
    return np.stack([np.asarray(frame, dtype=np.float64) @ (0.299, 0.587, 0.114) for frame in frames])
