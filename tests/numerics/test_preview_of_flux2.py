"""The preview of FLUX.2 on a live server, with what FLUX.2's pipelines hand out."""

from collections.abc import Iterator

import diffusers
import pytest
import torch

from remote_vae import Client, RemoteVAE, remote_decode
from remote_vae.models.families.taef2 import MEAN, STD

from .cases.flux2 import cells, patches
from .cases.taef2 import decoded, encoded, taef2, unpatched
from .conftest import TINY, Families, serve
from .pipelines import FLUX2, Case, flow

FLUX = flow(diffusers.Flux2Transformer2DModel, **{**FLUX2, "in_channels": 128})
CASE = Case(diffusers.Flux2Pipeline, "flux2", FLUX, {"height": 32, "width": 48}, pooled=False)
KLEIN = Case(diffusers.Flux2KleinPipeline, "klein", FLUX, {"height": 32, "width": 48}, pooled=False)


@pytest.fixture(scope="module")
def preview(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    torch.manual_seed(19)
    with serve({"flux2": taef2().eval()}, {"flux2": "taef2"}, tmp_path_factory.mktemp("preview")) as found:
        yield found


def previewed() -> diffusers.AutoencoderKLFlux2:
    """A tiny VAE that has the statistics of FLUX.2's."""
    module = diffusers.AutoencoderKLFlux2(**TINY, latent_channels=32).eval()
    module.bn.running_mean.copy_(torch.tensor(MEAN))
    module.bn.running_var.copy_(torch.tensor(STD).square() - module.config.batch_norm_eps)
    return module


@torch.no_grad()
def test_latents_of_pipelines(preview: Families) -> None:
    """Tokens of FLUX.2 are normalised, and the cells that klein hands out are normalised first, if that is said."""
    url, module = f"{preview.url}/flux2", preview.modules["flux2"]
    tokens, klein = CASE.run(previewed(), "latent"), KLEIN.run(previewed(), "latent")
    expected = decoded(module, unpatched(module, tokens))
    assert float(expected.std()) > 0.02, "there must be something to compare"
    sizes = {"height": 32, "width": 48}
    found = remote_decode(url, tokens, do_scaling=True, output_type="pt", return_type="pt", **sizes)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert klein.shape == (1, 32, 4, 6)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (MEAN, STD))
    expected = decoded(module, cells((patches(klein) - mean) / std))
    found = remote_decode(url, klein, do_scaling=False, output_type="pt", return_type="pt")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_picture(preview: Families) -> None:
    """A picture is encoded to normalised patches, as FLUX.2 encodes it."""
    pixels = torch.rand((1, 3, 32, 48), generator=torch.Generator().manual_seed(2)) * 2 - 1
    with Client(f"{preview.url}/flux2") as client:
        found = client.encode(pixels, do_scaling=True)
    torch.testing.assert_close(found, patches(encoded(preview.modules["flux2"], pixels)), atol=1e-5, rtol=0)


def test_a_remote_vae_in_a_pipeline(preview: Families) -> None:
    """A pipeline runs with a RemoteVAE of the preview, and gives the picture of its latent."""
    module = preview.modules["flux2"]
    found = CASE.run(RemoteVAE(f"{preview.url}/flux2"), "pt")
    with torch.no_grad():
        expected = decoded(module, unpatched(module, CASE.run(previewed(), "latent"))) * 0.5 + 0.5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
