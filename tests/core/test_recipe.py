"""Recipes as data: the one normalisation, forwards and backwards, and the operations before the VAE."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from remote_vae.core.affine import denormalise, normalise
from remote_vae.core.decode import decode
from remote_vae.core.encode import encode
from remote_vae.core.layout import MatchedLayout
from remote_vae.core.own_code import OwnCode
from remote_vae.core.recipe import Affine, Constants, Rearrange, Recipe
from remote_vae.core.vae_info import VAEInfo
from remote_vae.errors import NonFiniteInput
from remote_vae.values import Frames, Output, Posterior, Scaling, ScalingMode

OWN = Constants(0.31, 0.17, (-0.7, 0.4, 0.2), (1.7, 0.6, 1.3))
ALL = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in (OWN.latents_mean, OWN.latents_std))
Z = torch.randn((2, 3, 4, 6), generator=torch.Generator().manual_seed(1))

CASES = [
    (Affine(("scaling_factor",)), Scaling(ScalingMode.MODEL), Z / 0.31),
    (Affine(("scaling_factor", "shift_factor")), Scaling(ScalingMode.MODEL), Z / 0.31 + 0.17),
    (Affine(("scaling_factor", "latents_mean", "latents_std")), Scaling(ScalingMode.MODEL), Z * STD / 0.31 + MEAN),
    (Affine(("latents_mean", "latents_std")), Scaling(ScalingMode.MODEL), Z * STD + MEAN),
    (Affine(("latents_mean",)), Scaling(ScalingMode.MODEL), Z + MEAN),
    (Affine(), Scaling(ScalingMode.MODEL), Z),
    (Affine(ALL), Scaling(), Z),
    (Affine(ALL), Scaling(ScalingMode.GIVEN, 0.9), Z / 0.9),
    (Affine(ALL), Scaling(ScalingMode.GIVEN, 0.9, -0.2), Z / 0.9 - 0.2),
    (Affine(ALL), Scaling(ScalingMode.GIVEN, shift_factor=0.3), Z + 0.3),
    (Affine(literal=Constants(0.6, 0.1)), Scaling(ScalingMode.MODEL), Z),
    (Affine(literal=Constants(0.6, 0.1)), Scaling(ScalingMode.GIVEN, 0.6, 0.1), Z),
    (Affine(literal=Constants(0.6, 0.1)), Scaling(), (Z - 0.1) * 0.6),
]


@pytest.mark.parametrize(("op", "scaling", "expected"), CASES)
def test_affine(op: Affine, scaling: Scaling, expected: torch.Tensor) -> None:
    """A latent is denormalised with the constants that the recipe uses, that the caller gives, or with none."""
    assert torch.equal(denormalise(Z, op, scaling, OWN), expected)


@pytest.mark.parametrize(("op", "scaling", "expected"), CASES)
def test_affine_backwards(op: Affine, scaling: Scaling, expected: torch.Tensor) -> None:
    """Normalising undoes denormalising for every case."""
    torch.testing.assert_close(normalise(expected, op, scaling, OWN), Z, atol=1e-6, rtol=1e-6)


def test_statistics_come_in_pairs() -> None:
    """A mean without a deviation takes no part, as in the pipelines."""
    alone = Constants(0.31, None, OWN.latents_mean, None)
    op = Affine(("scaling_factor", "latents_mean", "latents_std"))
    assert torch.equal(denormalise(Z, op, Scaling(ScalingMode.MODEL), alone), Z / 0.31)


def test_affine_in_float32() -> None:
    """A half-precision latent is denormalised in float32: a large shift would otherwise eat its digits."""
    found = denormalise(Z.half(), Affine(ALL[:2]), Scaling(ScalingMode.MODEL), Constants(0.31, 100.0))
    assert torch.equal(found, Z.half().float() / 0.31 + 100)


class StepVAE:
    """Ratio 1, three channels: decoding is x * 2 + 1, encoding undoes it."""

    dtype = torch.float32
    device = torch.device("cpu")
    info = VAEInfo(3, 1, Frames(), OWN, "float32", deterministic=True)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return latent * 2 + 1

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - 1) / 2

    @property
    def decoders(self) -> tuple[OwnCode, ...]:
        return (OwnCode(torch.nn.Identity(), lambda _, latent: self.decode(latent)),)

    @property
    def encoders(self) -> tuple[OwnCode, ...]:
        return (OwnCode(torch.nn.Identity(), lambda _, pixels: self.encode(pixels)),)

    @contextmanager
    def upcast(self) -> Iterator[None]:
        yield


GRID = Rearrange("b c h w -> b c h w")
FIT = MatchedLayout(GRID.pattern, {"b": 2, "c": 3, "h": 4, "w": 6}, 2, 1, 4, 6)


def recipe(*ops: object) -> Recipe:
    return Recipe("test", (GRID,), ops, posterior="mode")  # type: ignore[arg-type]


def test_a_recipe_runs_backwards() -> None:
    """Encoding what a recipe decoded gives the latent back, through every operation."""
    swapped = Rearrange("b c h w -> b c w h")
    row = recipe(Affine(ALL[:2]), swapped)
    z, scaling = Z * 0.03, Scaling(ScalingMode.GIVEN, 0.31, -0.5)
    pixels = decode(StepVAE(), row, z, fit=FIT, scaling=scaling, output=Output.UNIT).tensor
    assert float(pixels.min()) > 0
    assert float(pixels.max()) < 1
    torch.testing.assert_close(pixels, ((z / 0.31 - 0.5) * 2 + 1).transpose(2, 3) * 0.5 + 0.5)
    back = encode(StepVAE(), row, pixels, scaling=scaling, posterior=Posterior.MODE).tensor
    torch.testing.assert_close(back, z, atol=1e-6, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_latents_that_are_not_finite(bad: float, dtype: torch.dtype) -> None:
    """A latent with one value that is not finite is refused before it is decoded."""
    z = Z.to(dtype, copy=True)
    z[1, 2, 3, 4] = bad
    with pytest.raises(NonFiniteInput, match="latent"):
        decode(StepVAE(), recipe(), z, fit=FIT, scaling=Scaling(), output=Output.RAW)


def test_infinities_that_cancel() -> None:
    """Two infinities of opposite sign are seen too, and large finite values are not taken for one."""
    z = torch.full((2, 3, 4, 6), 65504.0, dtype=torch.float16)
    decode(StepVAE(), recipe(), z, fit=FIT, scaling=Scaling(), output=Output.RAW)
    z[0, 0, 0, 0], z[0, 0, 0, 1] = float("inf"), float("-inf")
    with pytest.raises(NonFiniteInput):
        decode(StepVAE(), recipe(), z, fit=FIT, scaling=Scaling(), output=Output.RAW)


@pytest.mark.parametrize(
    ("output", "shape", "dtype"),
    [
        (Output.RAW, (2, 3, 4, 6), torch.float32),
        (Output.UNIT, (2, 3, 4, 6), torch.float32),
        (Output.UINT8, (2, 4, 6, 3), torch.uint8),
        (Output.FIRST, (1, 4, 6, 3), torch.uint8),
    ],
)
def test_outputs(output: Output, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Each output has its shape, type and range, and all show the same picture."""
    found = decode(StepVAE(), recipe(), Z, fit=FIT, scaling=Scaling(), output=output).tensor
    assert (tuple(found.shape), found.dtype) == (shape, dtype)
    raw = Z * 2 + 1
    unit = (raw * 0.5 + 0.5).clamp(0, 1)
    eight = (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    expected = {Output.RAW: raw, Output.UNIT: unit, Output.UINT8: eight, Output.FIRST: eight[:1]}[output]
    assert torch.equal(found, expected)
