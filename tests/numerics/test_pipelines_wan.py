"""What works on the VAEs of Wan and of Qwen-Image, against its own pipelines: both ways, and with a RemoteVAE."""

from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.pipelines.joyimage.image_processor import BUCKETS
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

from remote_vae import Client, RemoteVAE, remote_decode
from remote_vae.models.families import find_recipe

from .conftest import WAN_22, Families, serve, tiny_wan
from .pipelines import Case, picture
from .pipelines_of_wan import CHRONOEDIT, EDITS, HELIOS, PICTURES, SIZE, VACE, VIDEOS

pytestmark = [  # Cosmos and Helios hand tensors to numpy
    pytest.mark.filterwarnings("ignore:__array__ implementation"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]

RECIPES = {
    "wan": "wan2.1",
    "lucy": "wan2.2-5b",
    "fibo": "fibo",
    "joyimage": "joyimage",
    "edit": "qwen-image-edit",
}


def make_modules() -> dict[str, Any]:
    torch.manual_seed(17)
    modules = {name: tiny_wan() for name in ("wan", "joyimage")}
    modules |= {name: tiny_wan(**WAN_22) for name in ("lucy", "fibo")}
    modules["edit"] = tiny_wan(AutoencoderKLQwenImage)
    return {name: module.eval() for name, module in modules.items()}


@pytest.fixture(scope="module")
def wans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    with serve(make_modules(), RECIPES, tmp_path_factory.mktemp("wans")) as found:
        yield found


@pytest.fixture(autouse=True)
def _small_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines that edit scale every picture to a million pixels; the tests' are smaller."""
    monkeypatch.setitem(BUCKETS, 1024, [(48, 80)])
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda *_: (80, 48, None))
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "calculate_dimensions", lambda *_: (80, 48))


def check(case: Case, url: str, latents: torch.Tensor, pixels: torch.Tensor, **how: Any) -> None:
    """A pipeline's pixels in [0, 1]; if the pipeline checks them, they are cut to the eight bits below."""
    half = 0.5 / 255 if case.cls.__name__.startswith("Cosmos") else 0.0
    assert float(pixels.std()) > 0.02, "the picture must have something to compare"
    found = remote_decode(url, latents, do_scaling=True, output_type="pt", return_type="pt", **how)
    torch.testing.assert_close((found * 0.5 + 0.5).clamp(0, 1), pixels + half, atol=half + 1e-5, rtol=0)


@pytest.mark.parametrize("name", PICTURES)
def test_a_latent_of_a_pipeline_gives_its_picture(wans: Families, name: str) -> None:
    """The latent that a pipeline hands out is decoded to the picture that the pipeline gives with its own VAE."""
    case = PICTURES[name]
    module = wans.modules[case.family]
    pixels, latents = case.run(module, "pt"), case.run(module, "latent")
    sizes = {key: case.call[key] for key in SIZE} if latents.ndim == 3 else {}
    check(case, f"{wans.url}/{case.family}", latents, pixels, **sizes)


@pytest.mark.parametrize("name", VIDEOS)
def test_a_latent_of_a_pipeline_gives_its_video(wans: Families, name: str) -> None:
    """The latent that a pipeline of videos hands out is decoded to the video that the pipeline gives."""
    case = VIDEOS[name]
    module = wans.modules[case.family]
    pixels, latents = case.run(module, "pt"), case.run(module, "latent")
    assert pixels.shape[1] == 9
    check(case, f"{wans.url}/{case.family}", latents, pixels.transpose(1, 2))


@pytest.mark.parametrize("name", [*PICTURES, *VIDEOS, *EDITS])
def test_a_remote_vae_in_a_pipeline(wans: Families, name: str) -> None:
    """A pipeline with a RemoteVAE gives the pixels that it gives with the VAE itself."""
    case = {**PICTURES, **VIDEOS, **EDITS}[name]
    found, expected = (case.run(vae) for vae in (RemoteVAE(f"{wans.url}/{case.family}"), wans.modules[case.family]))
    assert float(expected.std()) > 0.02, "the picture must have something to compare"
    apart = (found - expected).abs()
    assert float(apart.max()) <= 1 / 255 + 1e-5
    assert float((apart > 1e-5).float().mean()) <= 1 / 5000  # blocks round in another order, so a level may be the next


def send(wans: Families, latents: torch.Tensor) -> torch.Tensor:
    """The video of a latent in [0, 1], [B,3,F,H,W]."""
    found = remote_decode(f"{wans.url}/wan", latents, do_scaling=True, output_type="pt", return_type="pt")
    return (found * 0.5 + 0.5).clamp(0, 1)


def test_what_to_send_for_vace(wans: Families) -> None:
    """The latent of VACE without its frames of reference pictures gives its video."""
    pixels, latents = (VACE.run(wans.modules["wan"], kind) for kind in ("pt", "latent"))
    assert latents.shape[2] == 2 + 3
    torch.testing.assert_close(send(wans, latents[:, :, 2:]), pixels.transpose(1, 2), atol=1e-5, rtol=0)


def test_what_to_send_for_chronoedit(wans: Families) -> None:
    """The reasoning and the edited picture of ChronoEdit are two latents."""
    pixels, latents = (CHRONOEDIT.run(wans.modules["wan"], kind) for kind in ("pt", "latent"))
    reasoning, edited = send(wans, latents[:, :, :-1]), send(wans, latents[:, :, [0, -1]])
    found = torch.cat([reasoning, edited[:, :, 1:]], dim=2)
    torch.testing.assert_close(found, pixels.transpose(1, 2), atol=1e-5, rtol=0)


def test_what_to_send_for_helios(wans: Families) -> None:
    """Each chunk of Helios is a latent; the videos follow each other, cut to 4k + 1 frames."""
    pixels, latents = (HELIOS.run(wans.modules["wan"], kind) for kind in ("pt", "latent"))
    found = torch.cat([send(wans, chunk) for chunk in latents.split(3, dim=2)], dim=2)
    assert (found.shape[2], pixels.shape[1]) == (18, 17)
    torch.testing.assert_close(found[:, :, :17], pixels.transpose(1, 2), atol=1e-5, rtol=0)


def test_fibo_encodes_its_references(wans: Families) -> None:
    """A picture gives the latent that Fibo's pipeline for edits makes of a reference, by the mode."""
    shown = picture(48, 80)
    pipeline = Case(diffusers.BriaFiboEditPipeline, "fibo", PICTURES["fibo"].networks).build(wans.modules["fibo"])
    with torch.no_grad():
        packed, _ = pipeline.prepare_reference_latents(shown, 48, torch.float32, torch.device("cpu"))
    with Client(wans.url) as client:
        found = torch.as_tensor(client.encode(shown, model="fibo", do_scaling=True))
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), packed, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("model", "posterior"), {"joyimage": "sample", "fibo": "mode", "wan": "mode"}.items())
def test_what_encoding_takes(wans: Families, model: str, posterior: str) -> None:
    """Without a wish, a model gives what its pipelines take of the posterior."""
    pixels = torch.rand((1, 3, 48, 80), generator=torch.Generator().manual_seed(7))
    with Client(wans.url) as client:
        found, again, mode = (client.encode(pixels, model=model, **how) for how in ({}, {}, {"posterior": "mode"}))
    assert torch.equal(found, mode) == torch.equal(found, again) == (posterior == "mode")


@pytest.mark.parametrize(
    ("names", "posterior"),
    [
        (("helios", "motif-video", "cosmos-predict2", "cosmos-transfer2.5", "joyimage-edit"), "sample"),
        (("wan2.2", "wan2.2-5b", "wan-vace", "chronoedit", "skyreels-v2", "lucy-edit", "cosmos3"), "mode"),
        (("fibo-edit", "joyimage-edit-plus", "qwen-image-edit"), "mode"),
    ],
)
def test_what_pipelines_take_of_the_posterior(names: tuple[str, ...], posterior: str) -> None:
    """Each name's recipe says what the pipelines of that name take when they encode."""
    assert {find_recipe(name).posterior for name in names} == {posterior}
