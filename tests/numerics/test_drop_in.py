"""RemoteVAE in diffusers' own pipelines: the pixels of the pipeline with its local VAE."""

import copy
import pickle
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor

from remote_vae import RemoteVAE
from remote_vae.client.model import RemoteModel
from remote_vae.errors import InvalidValue, LatentMismatch

from .pipelines import FROM_PICTURES, OTHERS, PICTURES, VIDEO, VIDEO_FROM_PICTURE, Case, picture

CASES = {
    **{f"text-{name}": case for name, case in PICTURES.items()},
    **{f"image-{name}": case for name, case in FROM_PICTURES.items()},
    **OTHERS,
    "video": VIDEO,
    "video-image": VIDEO_FROM_PICTURE,
}


NO_TEXT = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor", "image_encoder"))


def remote(families: Any, name: str) -> RemoteVAE:
    return RemoteVAE(f"{families.url}/{name}")


def check(case: Case, families: Any, **how: Any) -> None:
    found = case.run(remote(families, case.family), **how)
    expected = case.run(families.modules[case.family], **how)
    assert float(expected.float().std()) > 0.02, "the picture must have something to compare"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    check_levels(levels(found), levels(expected), encodes=case.encodes)


def check_levels(found: np.ndarray, expected: np.ndarray, *, encodes: bool) -> None:
    """The same bytes; after an encode one in 5000 may be the next one.

    The last bit of a float depends on how the tensors before it lie in memory, which the wire does not say.
    """
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= (1 if encodes else 0)
    assert (difference > 0).mean() <= 1 / 5000


def levels(unit: torch.Tensor) -> np.ndarray:
    return (unit.numpy() * 255).round()


@pytest.mark.parametrize("name", CASES)
def test_every_pipeline_gives_the_same_pixels(families: Any, name: str) -> None:
    """Text to image, image to image, inpainting, control, upscaling and video, with a seed: as with the local VAE.

    Floats to 1e-5, and bytes as `check_levels` has them.
    """
    check(CASES[name], families)


@pytest.mark.parametrize("case", [PICTURES["flux"], FROM_PICTURES["xl"]], ids=["text-flux", "image-xl"])
def test_batches(families: Any, case: Case) -> None:
    """Two pictures at once are the two of the local VAE."""
    check(case, families, batch=2)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_output_types(families: Any, output_type: str) -> None:
    """Each output type has the same pixels, of the same type, with and without the weights here."""
    case = FROM_PICTURES["sd"]
    found, expected = (case.run(vae, output_type) for vae in (remote(families, "sd"), families.modules["sd"]))
    assert type(found) is type(expected)
    assert type(found[0]) is type(expected[0])
    ours, theirs = (np.asarray(images[0]) for images in (found, expected))
    if output_type == "pil":
        check_levels(ours, theirs, encodes=True)
    else:
        assert np.allclose(ours, theirs, atol=1e-5)


def test_a_list_of_generators(families: Any) -> None:
    """A generator for each picture draws its posterior's noise, as it does locally."""
    case = FROM_PICTURES["sd"]
    found, expected = (
        case.build(vae)(
            num_inference_steps=2,
            generator=[torch.Generator().manual_seed(n) for n in (1, 2)],
            output_type="pt",
            **{**case.arguments(batch=2), "image": [picture(48, 80), picture(48, 80, darkest=99)]},
        )[0]
        for vae in (remote(families, "sd"), families.modules["sd"])
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_picture_goes_as_its_levels(families: Any) -> None:
    """A picture as the pipelines prepare it gives the very bits of the local posterior."""
    pixels = VaeImageProcessor().preprocess(picture(48, 80))
    with torch.no_grad():
        expected = families.modules["sd"].encode(pixels).latent_dist.parameters
    assert torch.equal(remote(families, "sd").encode(pixels).latent_dist.parameters, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bright_pictures_are_not_taken_for_another_range(families: Any, dtype: torch.dtype) -> None:
    """Pixels in [-1, 1] of which none is negative give the posterior that they give locally."""
    bright = torch.rand((1, 3, 48, 80), generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        expected = families.modules["sd"].encode(bright.float()).latent_dist
    found = remote(families, "sd").encode(bright).latent_dist
    assert found.parameters.dtype is dtype
    step = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(found.mode().float(), expected.mode(), atol=step, rtol=0)


@pytest.mark.parametrize(("name", "case"), [("tiny", FROM_PICTURES["sd"]), ("tinyflux", FROM_PICTURES["flux"])])
def test_previews(families: Any, name: str, case: Case) -> None:
    """A TAESD-type model on the server stands in for a local one, with its own config, both ways."""
    found, expected = (case.run(vae) for vae in (remote(families, name), families.modules[name]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated")  # by diffusers, in its own code
@pytest.mark.parametrize("case", [FROM_PICTURES["xl"], OTHERS["upscale"]], ids=["xl", "upscale"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(families: Any, case: Case, dtype: torch.dtype) -> None:
    """A pipeline in half precision runs, upcasts its VAE where the family does, and gives finite pixels."""
    vae = remote(families, case.family)
    pipeline = case.build(vae).to(dtype)
    assert vae.dtype is dtype
    arguments = {name: _to(value, dtype) for name, value in case.arguments().items()}
    pixels = pipeline(num_inference_steps=2, output_type="pt", **arguments)[0]
    assert pixels.isfinite().all()
    assert float(pixels.float().std()) > 0.02


def _to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) else value


def test_the_face_of_a_vae(families: Any) -> None:
    """It has the config of the served VAE and no weights, and follows `.to()`."""
    for name in ("sd", "flux", "flux2", "video", "tiny"):
        vae, module = remote(families, name), families.modules[name]
        shown = {key: value for key, value in dict(vae.config).items() if key not in ("endpoint", "model")}
        theirs = {key: value for key, value in dict(module.config).items() if not key.startswith("_")}
        theirs["shift_factor"] = theirs.get("shift_factor") or 0.0
        assert plain(shown) == plain(theirs)
        assert vae.num_parameters() == 0
        assert vae.device.type == "cpu"
        assert (vae.to(torch.float16).dtype, vae.float().dtype) == (torch.float16, torch.float32)
        assert vae.to("meta").device.type == "meta"
    assert (vae.spatial_compression_ratio, vae.temporal_compression_ratio) == (8, 1)
    video = remote(families, "video")
    assert (video.spatial_compression_ratio, video.temporal_compression_ratio) == (8, 4)
    assert families.url in repr(video)


@pytest.mark.parametrize("reached", [True, False])
def test_statistics_that_a_pipeline_reads(families: Any, reached: bool) -> None:
    """FLUX.2's pipelines find its batch norm, whose statistics are those of the local VAE and follow `.to()` alone."""
    module = families.modules["flux2"]
    if reached:
        vae = remote(families, "flux2")
    else:
        with pytest.warns(RuntimeWarning, match="the fallback"):
            vae = RemoteVAE("http://127.0.0.1:9/flux2", timeout=0.5, fallback=module)
    assert torch.equal(vae.bn.running_mean, module.bn.running_mean)
    torch.testing.assert_close(vae.bn.running_var, module.bn.running_var, atol=0, rtol=1e-6)
    assert vae.to(torch.float16).bn.running_var.dtype is torch.float16
    assert module.bn.running_var.dtype is torch.float32
    assert vae.num_parameters() == 0
    assert not [name for name in vae.state_dict() if name.startswith("bn.")]  # else offloading takes them for weights


def plain(config: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}


def test_results_as_objects_and_as_tuples(families: Any) -> None:
    """`return_dict` chooses what it chooses in diffusers' own classes."""
    vae, latent, pixels = remote(families, "sd"), torch.randn(1, 4, 6, 8), torch.randn(1, 3, 48, 64)
    assert torch.equal(vae.decode(latent).sample, vae.decode(latent, return_dict=False)[0])
    assert torch.equal(vae.encode(pixels).latent_dist.mean, vae.encode(pixels, return_dict=False)[0].mean)
    tiny = remote(families, "tiny")
    assert torch.equal(tiny.encode(pixels).latents, tiny.encode(pixels, return_dict=False)[0])


def test_tiling_and_slicing_are_accepted_and_explained(families: Any) -> None:
    """enable_tiling and enable_slicing change no pixel and say so; disabling them says nothing."""
    vae, latent = remote(families, "sd"), torch.randn(1, 4, 6, 8)
    before = vae.decode(latent).sample
    for method in ("enable_tiling", "enable_slicing"):
        with pytest.warns(UserWarning, match=f"{method} changes nothing: the server plans"):
            getattr(vae, method)()
    vae.disable_tiling()
    vae.disable_slicing()
    assert torch.equal(vae.decode(latent).sample, before)


def test_saved_with_its_pipeline_and_loaded_again(families: Any, tmp_path: Path) -> None:
    """A pipeline is saved with the server's address for its VAE, without a credential, and loads and runs again."""
    case, token = PICTURES["sd"], "a-secret-that-stays-here"
    address = families.url.replace("http://", f"http://name:{token}@")
    pipeline = case.build(RemoteVAE(f"{address}/sd"))
    pipeline.save_pretrained(tmp_path)
    assert [path.name for path in (tmp_path / "vae").iterdir()] == ["config.json"]
    assert token not in (tmp_path / "vae" / "config.json").read_text()
    again = StableDiffusionPipeline.from_pretrained(tmp_path, **NO_TEXT)
    assert isinstance(again.vae, RemoteVAE)
    assert np.array_equal(run(again), run(pipeline))
    half = StableDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float16, **NO_TEXT)
    assert half.vae.dtype is torch.float16


def run(pipeline: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    case = PICTURES["sd"]
    pixels = pipeline(
        num_inference_steps=2, generator=torch.Generator().manual_seed(4), output_type="np", **case.arguments()
    )
    return pixels[0]


def test_given_to_from_pretrained_and_from_pipe(families: Any, tmp_path: Path) -> None:
    """`from_pretrained(vae=...)` takes it in place of the saved VAE, and so does `from_pipe`."""
    PICTURES["sd"].build(families.modules["four"]).save_pretrained(tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, vae=remote(families, "sd"), **NO_TEXT)
    assert np.allclose(run(pipeline), run(PICTURES["sd"].build(families.modules["sd"])), atol=1e-5)
    assert StableDiffusionImg2ImgPipeline.from_pipe(pipeline, vae=pipeline.vae, **NO_TEXT).vae is pipeline.vae


def test_offload_hooks(families: Any) -> None:
    """Decoding moves the model before it off the device, as decoding with a local VAE does."""
    vae, before = remote(families, "sd"), torch.nn.Linear(2, 2)
    before, hook = accelerate.cpu_offload_with_hook(before, "meta")
    accelerate.cpu_offload_with_hook(vae, "cpu", prev_module_hook=hook)
    before.to("meta")  # as if it had just worked on a GPU
    offloaded: list[bool] = []
    hook.offload = lambda: offloaded.append(True)
    for call in (lambda: vae.decode(torch.randn(1, 4, 6, 8)), lambda: vae.encode(torch.rand(1, 3, 48, 64))):
        call()
    assert offloaded == [True, True]


def test_pickling_is_refused(families: Any) -> None:
    """Pickling and copying say that another one can be made with the same URL."""
    vae = remote(families, "sd")
    for attempt in (pickle.dumps, copy.deepcopy):
        with pytest.raises(pickle.PicklingError, match=rf"RemoteVAE\('{families.url}/sd'\)"):
            attempt(vae)


@pytest.mark.parametrize(
    ("case", "name", "words"),
    [
        (PICTURES["sd"], "flux", r"4 channels.*'flux'.*takes 16 channels, \[B,16,h,w\].*model of this pipeline"),
        (PICTURES["flux"], "xl", r"16 channels.*'xl'.*takes 4 channels"),
        (VIDEO, "flux", r"\[1, 16, 25, 4, 6\].*'flux'.*\[B,16,h,w\]"),
        (PICTURES["three"], "video", r"\[1, 16, 6, 10\].*'video'.*\[B,16,f,h,w\]"),
    ],
)
def test_the_wrong_model_for_a_pipeline(families: Any, case: Case, name: str, words: str) -> None:
    """A model of another family is refused with both numbers of channels, and both layouts."""
    with pytest.raises(LatentMismatch, match=words):
        case.run(remote(families, name))


@pytest.mark.parametrize("shape", [(1, 3, 44, 64), (1, 4, 48, 64), (3, 48, 64)])
def test_what_is_no_picture(families: Any, shape: tuple[int, ...]) -> None:
    """Pixels that the server would have to resize or could not read are refused with what is expected."""
    with pytest.raises(InvalidValue, match=r"expected \[B,3,H,W\] with H and W multiples of 8"):
        remote(families, "sd").encode(torch.zeros(shape))


@pytest.mark.parametrize("name", ["flux", "flux2"])
def test_pixels_are_taken_as_they_are(families: Any, name: str) -> None:
    """A side that the family's pipelines would floor is encoded as the VAE encodes it: theirs is done by then."""
    pixels = torch.rand((1, 3, 40, 64), generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        expected = families.modules[name].encode(pixels).latent_dist.mean
    torch.testing.assert_close(remote(families, name).encode(pixels).latent_dist.mean, expected, atol=1e-5, rtol=1e-5)


def test_pixels_that_a_latent_cannot_hold(families: Any) -> None:
    """FLUX.2's normalised latent has patches of two cells, so a side with half a patch is an error."""
    with RemoteModel(f"{families.url}/flux2") as model, pytest.raises(InvalidValue, match="multiples of 16"):
        model.encode(torch.zeros(1, 3, 40, 64), posterior="mode")


def test_gradients_are_refused(families: Any) -> None:
    """A latent that wants a gradient is refused, because none would come back."""
    latent = torch.randn(1, 4, 6, 8, requires_grad=True)
    with pytest.raises(InvalidValue, match="no gradient"):
        remote(families, "sd").decode(latent)
    with torch.no_grad():
        assert remote(families, "sd").decode(latent).sample.shape == (1, 3, 48, 64)
