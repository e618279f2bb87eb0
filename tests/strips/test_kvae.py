"""KVAE for pictures in strips gives the pixels of diffusers' own code."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLKVAE

from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.own_code import OwnCode
from remote_vae.core.stages import Downsample, Program
from remote_vae.core.strips import strip_executors
from remote_vae.core.sweep import StripPlan
from remote_vae.models.family import decode_by_class
from remote_vae.models.stages.kvae import describe

from .models import shaken
from .test_exact import CLOSE, FEW_ROWS, PLANS, apart, cast, through


def kvae(seed: int = 0) -> AutoencoderKLKVAE:
    """Its norms have 32 groups, and one level changes its width."""
    torch.manual_seed(seed)
    return shaken(AutoencoderKLKVAE(channels=32, ch_mult=(1, 2, 2), num_enc_blocks=1, num_dec_blocks=1, z_channels=4))


@pytest.fixture(scope="module")
def model() -> AutoencoderKLKVAE:
    return kvae()


def programs(model: AutoencoderKLKVAE) -> tuple[Program, Program]:
    found = describe(model)
    assert found is not None
    return found


@pytest.mark.parametrize("plan", PLANS)
def test_decode(plan: str, model: AutoencoderKLKVAE) -> None:
    """Decoding in strips of any height differs from the whole decoder by rounding alone, at odd sizes too."""
    z = torch.randn(1, 4, 7, 5)
    assert apart(through(programs(model)[0], z, PLANS[plan]), model.decode(z).sample) < CLOSE


@pytest.mark.parametrize("plan", PLANS)
def test_encode(plan: str, model: AutoencoderKLKVAE) -> None:
    """Encoding in strips of any height differs from the whole encoder by rounding alone."""
    x = torch.randn(1, 3, 28, 20)
    assert apart(through(programs(model)[1], x, PLANS[plan]), model.encode(x).latent_dist.parameters) < CLOSE


def test_edges_count(model: AutoencoderKLKVAE) -> None:
    """The tests above notice it when an edge is repeated that should be mirrored."""
    program, x = programs(model)[1], torch.randn(1, 3, 28, 20)
    wrong = (replace(stage, mirrors=False) if isinstance(stage, Downsample) else stage for stage in program.stages)
    found = through(Program(tuple(wrong)), x, StripPlan(FEW_ROWS))
    assert apart(found, model.encode(x).latent_dist.parameters) > 100 * CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decoding", [True, False])
def test_16_bits(decoding: bool, dtype: torch.dtype) -> None:
    """In 16 bits, strips are as near to the float32 result as diffusers is in the same precision, within 0.5 dB."""
    model, given = kvae(seed=1), torch.randn(1, 4, 16, 16) if decoding else torch.randn(1, 3, 64, 64)

    def own(given: torch.Tensor) -> torch.Tensor:
        return model.decode(given).sample if decoding else model.encode(given).latent_dist.parameters

    reference = own(given)
    model, given = cast(model, dtype), given.to(dtype)
    found = through(programs(model)[0 if decoding else 1], given, StripPlan(FEW_ROWS))

    def noise(found: torch.Tensor) -> torch.Tensor:
        return 10 * torch.log10((found.float() - reference).square().mean())

    assert noise(found) - noise(own(given)) < 0.5


@pytest.mark.parametrize("decoding", [True, False])
def test_prediction(decoding: bool) -> None:
    """With the true architecture, every executor's predicted peak is within 15 % of what is counted."""
    with torch.device("meta"):
        model = AutoencoderKLKVAE().eval().requires_grad_(False)
    shape = (1, 16, 64, 64) if decoding else (1, 3, 512, 512)
    for executor in strip_executors(programs(model)[0 if decoding else 1], "cuda", 1):
        given = torch.empty(shape, device="meta")
        with LiveBytes() as live:
            executor.run(given.clone(), lambda *block: None, lambda: None)
        assert abs(executor.peak_bytes(shape, torch.float32, 0) / live.peak - 1) < 0.15


def test_own_code_of_a_small_picture() -> None:
    """What is predicted for a small picture is at least what diffusers' code takes, and not much more."""
    with torch.device("meta"):
        model = AutoencoderKLKVAE().eval().requires_grad_(False)
    own, z = OwnCode(model, decode_by_class, programs(model)[0]), torch.empty(1, 16, 8, 8, device="meta")
    with torch.inference_mode(), LiveBytes() as live:
        decode_by_class(model, z)
    assert live.peak <= own.peak_bytes(tuple(z.shape), z.dtype, 0) <= 1.1 * live.peak


def test_unknown_parts_are_not_described() -> None:
    """A convolution that pads otherwise is left to the model's own code."""
    other = kvae()
    other.decoder.up[1].upsample.spatial_conv.padding_mode = "circular"
    assert describe(other) is None
