"""VidTok's other kinds: quantised latents, and models that are not causal."""

from pathlib import Path
from typing import Any

import pytest
import torch

from remote_vae.core.decode import decode
from remote_vae.core.encode import encode
from remote_vae.core.layout import fit_latent
from remote_vae.core.recipe import Recipe
from remote_vae.errors import LatentMismatch
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Posterior, Scaling

from .cases.tokenizers import tiny_vidtok


def served(folder: Path, **config: Any) -> tuple[Any, DiffusersVAE, Recipe]:
    torch.manual_seed(4)
    module = tiny_vidtok(**config).eval()
    module.save_pretrained(folder)
    spec = ModelSpec("mine", str(folder), recipe="vidtok", device="cpu")
    return module, load(spec), spec.resolve_recipe()


@torch.no_grad()
def test_quantised_latents(tmp_path: Path) -> None:
    """A quantised latent has no variance, so that a sample of it is the latent itself, which decodes as such."""
    config = {"regularizer": "fsq", "double_z": False, "z_channels": 5, "codebook_size": 8**5}
    module, vae, recipe = served(tmp_path, **config)
    pixels = torch.rand((1, 3, 5, 16, 24), generator=torch.Generator().manual_seed(5)) * 2 - 1
    padded = torch.cat((pixels[:, :, :1].repeat(1, 1, 3, 1, 1), pixels), dim=2)
    expected = module.encode(padded)[0]
    for posterior in (Posterior.SAMPLE, Posterior.MODE):
        found = encode(vae, recipe, pixels, scaling=Scaling(), posterior=posterior).tensor
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    fit = fit_latent(recipe, vae.info, tuple(expected.shape), model="m", height=None, width=None)
    video = decode(vae, recipe, expected, fit=fit, scaling=Scaling(), output=Output.RAW).tensor
    torch.testing.assert_close(video, module.decode(expected), atol=1e-5, rtol=0)


@torch.no_grad()
def test_models_that_are_not_causal(tmp_path: Path) -> None:
    """They take four latent frames, or eight, and give four frames for each; other numbers are refused."""
    module, vae, recipe = served(tmp_path, is_causal=False)
    z = torch.randn((1, 4, 4, 2, 3), generator=torch.Generator().manual_seed(3))
    fit = fit_latent(recipe, vae.info, tuple(z.shape), model="m", height=None, width=None)
    video = decode(vae, recipe, z, fit=fit, scaling=Scaling(), output=Output.RAW).tensor
    assert fit.frames == video.shape[2] == 16
    torch.testing.assert_close(video, module.decode(z), atol=1e-5, rtol=0)
    with pytest.raises(LatentMismatch, match=r"has 6 frames; .* so send 4 or 8"):
        fit_latent(recipe, vae.info, (1, 4, 6, 2, 3), model="m", height=None, width=None)
    pixels = torch.rand((1, 3, 16, 16, 24), generator=torch.Generator().manual_seed(5)) * 2 - 1
    found = encode(vae, recipe, pixels, scaling=Scaling(), posterior=Posterior.MODE).tensor
    torch.testing.assert_close(found, module.encode(pixels).latent_dist.mode(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_nothing_stays_between_calls(tmp_path: Path) -> None:
    """The last frames of each convolution, which the class keeps, are dropped after a call."""
    module, vae, _ = served(tmp_path)
    z = torch.randn((1, 4, 2, 2, 3), generator=torch.Generator().manual_seed(3))
    vae.decoders[0].run(z, lambda *_: None, lambda: None)
    assert all(getattr(part, "causal_cache", None) is None for part in vae.module.modules())
    module.decode(z)
    assert any(getattr(part, "causal_cache", None) is not None for part in module.modules())
