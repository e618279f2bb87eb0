"""MoVQ in strips, whose norms are scaled by the latent, gives the pixels of diffusers' own code."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import VQModel

from numerics.cases import CASES
from remote_vae.core import rows
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.own_code import OwnCode
from remote_vae.core.strips import Strips, strip_executors
from remote_vae.core.sweep import StripPlan
from remote_vae.models.families import MODELS
from remote_vae.models.families.vq import decode_as_it_is
from remote_vae.models.family import decode_by_class
from remote_vae.models.stages import vq
from remote_vae.models.stages.autoencoder_kl import describe_decoder, describe_encoder

from .models import shaken
from .test_exact import CLOSE, FEW_ROWS, PLANS, apart, cast, through


def movq(seed: int = 0) -> VQModel:
    """With attention in the middle and on the lowest level; its norms have 32 groups, whatever the config says."""
    torch.manual_seed(seed)
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64, 96), latent_channels=4, vq_embed_dim=4, num_vq_embeddings=8, norm_type="spatial",
    )  # fmt: skip
    return shaken(model)


@pytest.fixture(scope="module")
def model() -> VQModel:
    return movq()


def decoded(model: VQModel, z: torch.Tensor) -> torch.Tensor:
    return model.decode(z, force_not_quantize=True).sample


@pytest.mark.parametrize("plan", PLANS)
def test_decode(plan: str, model: VQModel) -> None:
    """Decoding in strips of any height differs from the whole decoder by rounding alone, at odd sizes too."""
    z = torch.randn(1, 4, 7, 5)
    assert apart(through(describe_decoder(model), z, PLANS[plan]), decoded(model, z)) < CLOSE


@pytest.mark.parametrize("plan", PLANS)
def test_encode(plan: str, model: VQModel) -> None:
    """Encoding in strips of any height differs from the whole encoder by rounding alone."""
    x = torch.randn(1, 3, 28, 20)
    assert apart(through(describe_encoder(model), x, PLANS[plan]), model.encode(x).latents) < CLOSE


def test_batch(model: VQModel) -> None:
    """Each picture of a batch is scaled by its own latent."""
    program, z = describe_decoder(model), torch.randn(2, 4, 6, 5)
    assert program is not None
    found: list[torch.Tensor] = []
    executor = Strips("strips", program, "cpu", 1)
    executor.run(z, lambda first, row, strip: found.append(strip.clone()), lambda: None)
    reference = decoded(model, z)
    assert apart(torch.cat(found, 2), torch.cat([*reference], 1)[None]) < CLOSE


@pytest.mark.parametrize("missed", ["latent", "row"])
def test_the_latent_counts(missed: str, model: VQModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above notice it when a norm is scaled by another row of the latent, or not by the latent."""
    right = rows._scale

    def wrong(strip: torch.Tensor, first: int, parts: Any, guide: torch.Tensor, times: int) -> None:
        if missed == "row":
            first = max(0, first - 1)
        else:
            guide = guide * 0
        right(strip, first, parts, guide, times)

    monkeypatch.setattr(rows, "_scale", wrong)
    z = torch.randn(1, 4, 7, 5)
    assert apart(through(describe_decoder(model), z, StripPlan(FEW_ROWS)), decoded(model, z)) > 100 * CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype: torch.dtype) -> None:
    """In 16 bits, strips are as near to the float32 decode as diffusers is in the same precision, within 0.5 dB."""
    model, z = movq(seed=1), torch.randn(1, 4, 16, 16)
    reference = decoded(model, z)
    model, z = cast(model, dtype), z.to(dtype)
    found = through(describe_decoder(model), z, StripPlan(FEW_ROWS))

    def noise(pixels: torch.Tensor) -> torch.Tensor:
        return 10 * torch.log10((pixels.float() - reference).square().mean())

    assert noise(found) - noise(decoded(model, z)) < 0.5


@pytest.mark.parametrize("decoding", [True, False])
def test_prediction(decoding: bool) -> None:
    """With the true architecture, every executor's predicted peak is within 15 % of what is counted."""
    with torch.device("meta"):
        model = VQModel(**(MODELS["movq"].config or {})).eval().requires_grad_(False)
    program = describe_decoder(model) if decoding else describe_encoder(model)
    assert program is not None
    shape = (1, 4, 64, 64) if decoding else (1, 3, 512, 512)
    for executor in strip_executors(program, "cuda", 1):
        given = torch.empty(shape, device="meta")
        with LiveBytes() as live:
            executor.run(given.clone(), lambda *block: None, lambda: None)
        assert abs(executor.peak_bytes(shape, torch.float32, 0) / live.peak - 1) < 0.15


def test_own_code_of_a_small_picture() -> None:
    """What is predicted for a small picture is at least what diffusers' code takes, and not much more."""
    with torch.device("meta"):
        model = VQModel(**(MODELS["movq"].config or {})).eval().requires_grad_(False)
    own, z = OwnCode(model, decode_as_it_is, describe_decoder(model)), torch.empty(1, 4, 8, 8, device="meta")
    with torch.inference_mode(), LiveBytes() as live:
        decode_as_it_is(model, z)
    assert live.peak <= own.peak_bytes(tuple(z.shape), z.dtype, 0) <= 1.3 * live.peak


def test_nearest_entries() -> None:
    """Cells become the entries of the codebook that the class chooses, for more cells than are compared at once."""
    torch.manual_seed(0)
    model, z = VQModel(num_vq_embeddings=500, latent_channels=3), torch.randn(2, 3, 17, 19)
    model.quantize.embedding.weight.data.normal_()
    assert torch.equal(vq._nearest(model.quantize.embedding.weight.data, z), _entries(model, z))


def _entries(model: VQModel, z: torch.Tensor) -> torch.Tensor:
    numbers = model.quantize(z)[2][2]
    found: torch.Tensor = model.quantize.embedding(numbers).view(2, 17, 19, 3).permute(0, 3, 1, 2)
    return found


def test_a_forgotten_codebook_is_seen() -> None:
    torch.manual_seed(0)
    model, z = shaken(CASES["ldm-super-resolution"].module()), torch.randn(1, 3, 7, 5)
    found = vq.describe(model)
    assert found is not None
    expected = model.decode(z).sample
    for program, close in ((found[0], True), (replace(found[0], before=None), False)):
        parts: list[torch.Tensor] = []
        Strips("strips", program, "cpu", 1).run(z, lambda *block, parts=parts: parts.append(block[2]), lambda: None)
        difference = apart(torch.cat(parts, 2), expected)
        assert difference < CLOSE if close else difference > 100 * CLOSE


def test_own_code_of_a_codebook() -> None:
    """What is predicted for the class is at least what it takes, its distances to all entries included."""
    with torch.device("meta"):
        model = VQModel(**(MODELS["ldm-super-resolution"].config or {})).eval().requires_grad_(False)
    found = vq.describe(model)
    assert found is not None
    own, z = OwnCode(model, decode_by_class, found[0]), torch.empty(1, 3, 64, 64, device="meta")
    with torch.inference_mode(), LiveBytes() as live:
        decode_by_class(model, z)
    assert live.peak <= own.peak_bytes(tuple(z.shape), z.dtype, 0) <= 1.3 * live.peak
