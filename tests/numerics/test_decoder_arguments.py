"""What a decoder takes besides the latent: a timestep, a share of noise, and the noise's seed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from remote_vae import Client
from remote_vae.core.decode import decode
from remote_vae.core.executor import RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.errors import MalformedRequest
from remote_vae.models.fast_import import open_model
from remote_vae.models.spec import ModelSpec
from remote_vae.values import Output, Scaling, ScalingMode

from .cases.ltx import GROUPS, TIMESTEPS, normalised, tiny_ltx
from .cases.ltx2 import statistics, tiny_ltx2
from .conftest import Families, serve

NOISY = {**TIMESTEPS, "decoder_inject_noise": (True,) * 4}
ARGUMENTS = {"decode_timestep": 0.3, "decode_noise_scale": 0.2, "seed": 5}


def latent(batch: int = 1, frames: int = 2) -> torch.Tensor:
    return torch.randn((batch, 128, frames, 2, 3), generator=torch.Generator().manual_seed(3))


def mixed(z: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """As LTXPipeline.__call__ has it, with a generator of this seed."""
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed))
    shares = torch.tensor([share] * len(z))[:, None, None, None, None]
    return (1 - shares) * z + shares * noise


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    torch.manual_seed(17)
    modules = {
        "ltx": tiny_ltx().eval(),
        "noisy": tiny_ltx(**NOISY).eval(),
        "groups": tiny_ltx(**TIMESTEPS, **GROUPS).eval(),
        "ltx2": tiny_ltx2(timestep_conditioning=True).eval(),
    }
    recipes = {**dict.fromkeys(modules, "ltx"), "ltx2": "ltx2"}
    with serve(modules, recipes, tmp_path_factory.mktemp("ltx")) as found:
        yield found


@pytest.mark.parametrize(
    ("given", "share"),
    [
        (ARGUMENTS, 0.2),
        ({"decode_timestep": 0.3, "seed": 5}, 0.3),
        ({"decode_timestep": 0.3, "decode_noise_scale": 0}, 0),
    ],
)
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_a_timestep_and_noise_from_a_seed(served: Families, given: dict[str, Any], share: float, batch: int) -> None:
    """Pixels are those of the pipelines' formula; the share of noise is the timestep's unless it is given."""
    module, z = served.modules["groups"], latent(batch)
    with Client(f"{served.url}/groups") as client:
        found = client.decode(z, do_scaling=True, output_type="pt", **given)
        plain = client.decode(z, do_scaling=True, output_type="pt")
    expected = module.decode(mixed(normalised(module, z), share, 5), torch.full((batch,), 0.3)).sample
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert float((found - plain).abs().max()) > 0.01, "the arguments must change something"


@torch.no_grad()
def test_noise_before_the_statistics(served: Families) -> None:
    """LTX-2's pipelines mix noise into the latent before they denormalise it, and hand it out denormalised."""
    module, z = served.modules["ltx2"], latent(2)
    mean, std = statistics(module)
    factor = module.config.scaling_factor
    with Client(f"{served.url}/ltx2") as client:
        found = client.decode(z * std / factor + mean, output_type="pt", **ARGUMENTS)
    expected = module.decode(mixed(z, 0.2, 5) * std / factor + mean, torch.full((2,), 0.3)).sample
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_noise_between_layers_has_the_seed_too(served: Families) -> None:
    """A decoder that draws noise by itself draws it from the seed, and other draws are not disturbed."""
    module, z = served.modules["noisy"], latent()
    with Client(f"{served.url}/noisy") as client:
        first, again, other = (
            client.decode(z, do_scaling=True, output_type="pt", decode_timestep=0.3, decode_noise_scale=0, seed=seed)
            for seed in (5, 5, 6)
        )
    torch.manual_seed(5)
    expected = module.decode(normalised(module, z), torch.full((1,), 0.3)).sample
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(first, again)
    assert float((first - other).abs().max()) > 0.001


def test_a_model_that_takes_none(served: Families) -> None:
    """An option that is for decoders of another kind is refused by name, and the card says what a model takes."""
    with Client(served.url) as client:
        takes = {card["name"]: card["takes"] for card in client.models()}
        for name, value in ARGUMENTS.items():
            with pytest.raises(MalformedRequest, match=rf"{name}={value} .*'ltx' takes a latent only"):
                client.decode(latent(), model="ltx", output_type="pt", **{name: value})
    assert takes == {"ltx": [], **{name: [*ARGUMENTS] for name in ("noisy", "groups", "ltx2")}}


def test_memory_is_predicted_and_tiles_take_them(tmp_path: Path) -> None:
    """The prediction runs the decoder without arguments; tiles take what the whole takes."""
    torch.manual_seed(17)
    module = tiny_ltx(**TIMESTEPS, **GROUPS).eval()
    module.save_pretrained(tmp_path)
    vae, recipe = open_model(ModelSpec("mine", str(tmp_path), recipe="ltx", device="cpu").to_json())
    z = torch.randn((2, 128, 1, 2, 18), generator=torch.Generator().manual_seed(3))
    fit = fit_latent(recipe, vae.info, tuple(z.shape), model="m", height=None, width=None)
    found = decode(
        vae, recipe, z, fit=fit, scaling=Scaling(ScalingMode.MODEL), output=Output.RAW,
        options=RunOptions(plan="tiles", budget=lambda: 1 << 40, arguments=ARGUMENTS),
    )  # fmt: skip
    assert found.peak_bytes is not None
    assert found.peak_bytes > found.tensor.nbytes
    module.enable_tiling()
    with torch.no_grad():
        expected = module.decode(mixed(normalised(module, z), 0.2, 5), torch.full((2,), 0.3)).sample
    torch.testing.assert_close(found.tensor, expected, atol=1e-5, rtol=1e-5)
