"""Pictures encoded here and by diffusers' img2img pipelines: the same latents, before and after their scaling."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline
from diffusers.video_processor import VideoProcessor

from remote_vae import Client, remote_decode

from .pipelines import FROM_PICTURES, IMAGE, PICTURES, call, picture

SEED = 21


def build(name: str, vae: Any) -> Any:
    """The img2img pipeline, ready to start."""
    pipeline = FROM_PICTURES[name].build(vae)
    pipeline.scheduler.set_timesteps(10)
    return pipeline


def prepare(pipeline: Any, image: torch.Tensor, generator: torch.Generator, size: tuple[int, int]) -> torch.Tensor:
    """The pipeline's own start of an img2img run; a latent given as the image is not encoded again."""
    timestep = pipeline.scheduler.timesteps[-1:]
    common = {"dtype": torch.float32, "device": torch.device("cpu"), "generator": generator}
    with torch.no_grad():
        if isinstance(pipeline, FluxImg2ImgPipeline):
            found = pipeline.prepare_latents(image, timestep, 1, 16, *size, **common)[0]
        else:
            found = pipeline.prepare_latents(image, timestep, 1, 1, **common)
    return found


@pytest.mark.parametrize(("height", "width"), [(48, 80), (53, 70)])
@pytest.mark.parametrize("name", FROM_PICTURES)
def test_a_seeded_sample_is_the_pipelines(families: Any, name: str, height: int, width: int) -> None:
    """A picture encoded with a seed starts img2img as the pipeline's own encoding does, at sizes that are floored too.

    The pipeline draws the posterior's noise first and the start's noise next, so the latter's generator is moved on.
    """
    pipeline, image = build(name, families.modules[name]), picture(height, width)
    pixels = pipeline.image_processor.preprocess(image)
    size = (pixels.shape[2], pixels.shape[3])
    expected = prepare(pipeline, pixels, torch.Generator().manual_seed(SEED), size)
    with Client(families.url) as client:
        latent = torch.from_numpy(client.encode(image, model=name, seed=SEED, posterior="sample", do_scaling=True))
        default = client.encode(image, model=name, seed=SEED, do_scaling=True)
    assert np.array_equal(default, latent.numpy()), "a sample is what these families take when nothing is said"
    moved_on = torch.Generator().manual_seed(SEED)
    torch.randn(latent.shape, generator=moved_on)
    torch.testing.assert_close(prepare(pipeline, latent, moved_on, size), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FROM_PICTURES)
def test_a_whole_run_from_a_picture(families: Any, name: str) -> None:
    """A picture encoded here, changed by a pipeline without VAE, and decoded here, has the pixels of a whole run."""
    case, module, url = FROM_PICTURES[name], families.modules[name], f"{families.url}/{name}"
    expected = case.run(module)
    with Client(url) as client:
        latent = torch.from_numpy(client.encode(IMAGE["image"], seed=4, do_scaling=True))
    pipeline = case.build(module)
    pipeline.vae.decode = pipeline.vae.encode = None
    moved_on = torch.Generator().manual_seed(4)
    torch.randn(latent.shape, generator=moved_on)
    try:
        found = call(pipeline, "latent", moved_on, **{**case.arguments(), "image": latent})
    finally:
        del module.decode, module.encode
    sizes = {"height": 48, "width": 80} if name == "flux" else {}
    raw = remote_decode(url, found, output_type="pt", return_type="pt", **sizes)
    torch.testing.assert_close((raw * 0.5 + 0.5).clamp(0, 1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FROM_PICTURES)
def test_parameters_are_enough_to_sample_at_home(families: Any, name: str) -> None:
    """A client that asks for the posterior's parameters draws the sample that the VAE's own distribution draws."""
    module, pixels = families.modules[name], torch.rand((2, 3, 48, 80), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        posterior = module.encode(pixels * 2 - 1).latent_dist
    with Client(families.url) as client:
        moments = client.encode(pixels, model=name, posterior="parameters")
        mode = client.encode(pixels, model=name, posterior="mode")
    torch.testing.assert_close(moments, posterior.parameters, atol=1e-5, rtol=0)
    torch.testing.assert_close(mode, posterior.mode(), atol=1e-5, rtol=0)
    ours = type(posterior)(moments).sample(torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours, posterior.sample(torch.Generator().manual_seed(2)), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:Passing `image` as torch tensor with value range")
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_tensors_are_told_apart_as_the_pipelines_do(families: Any, name: str, signed: bool) -> None:
    """A float tensor in [0, 1] or in [-1, 1] is encoded as the pipeline's image processor takes it, floored in size."""
    pipeline, module = build(name, families.modules[name]), families.modules[name]
    pixels = torch.rand((1, 3, 53, 70), generator=torch.Generator().manual_seed(4))
    pixels = pixels * 2 - 1 if signed else pixels
    with torch.no_grad():
        expected = module.encode(pipeline.image_processor.preprocess(pixels)).latent_dist.mode()
    with Client(families.url) as client:
        found = client.encode(pixels, model=name, posterior="mode")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_flux2_encodes_to_normalised_patches(families: Any) -> None:
    """FLUX.2's latent is what its pipeline makes of a reference picture; klein's is the VAE's own, with no scaling."""
    pixels = torch.rand((1, 3, 64, 80), generator=torch.Generator().manual_seed(7)) * 2 - 1
    with torch.no_grad():
        patches = PICTURES["flux2"].build(families.modules["flux2"])._encode_vae_image(pixels, None)
        cells = families.modules["klein"].encode(pixels).latent_dist.mode()
    with Client(families.url) as client:
        found = client.encode(pixels, model="flux2", do_scaling=True)
        again = client.decode(found, model="flux2", do_scaling=True, output_type="pt")
        klein = client.encode(pixels, model="klein", do_scaling=True)
    assert found.shape == (1, 32, 4, 5)
    torch.testing.assert_close(found, patches, atol=1e-5, rtol=0)
    torch.testing.assert_close(klein, cells, atol=1e-5, rtol=0)
    with torch.no_grad():
        expected = families.modules["flux2"].decode(families.modules["flux2"].encode(pixels).latent_dist.mode()).sample
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)


def test_a_preview_encodes_to_the_latents_of_the_model_it_stands_for(families: Any) -> None:
    """A preview's latent is the model's when scaled by the server, and the unscaled one when nothing is asked."""
    pixels = torch.rand((1, 3, 48, 80), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        expected = families.modules["tinyflux"].encode(pixels * 2 - 1).latents
    with Client(families.url) as client:
        scaled = client.encode(pixels, model="tinyflux", do_scaling=True)
        raw = client.encode(pixels, model="tinyflux")
    torch.testing.assert_close(scaled, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close((raw - 0.1159) * 0.3611, expected, atol=1e-5, rtol=0)


def test_a_video_is_encoded_framewise(families: Any) -> None:
    """A video longer than one window gives the mode of the VAE's own framewise encoding, scaled by its factor."""
    module = families.modules["video"]
    video = torch.rand((1, 3, 25, 32, 48), generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        expected = module.encode(VideoProcessor(vae_scale_factor=8).normalize(video)).latent_dist.mode() * 0.47
    with Client(families.url) as client:
        found = client.encode(video, model="video", do_scaling=True)
    assert found.shape == (1, 16, 7, 4, 6)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
