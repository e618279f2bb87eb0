"""What only a GPU can show. Without one these tests are not collected as passed: they are skipped, with the reason."""

import pytest
import torch
from diffusers import AutoencoderKL

from remote_vae.core.attention import attend, by_products
from remote_vae.core.late_biases import with_late_biases
from remote_vae.core.rows import kernels_for
from remote_vae.core.stages import Program
from remote_vae.core.strips import run
from remote_vae.core.sweep import StripPlan
from remote_vae.models.stages.autoencoder_kl import describe_decoder, describe_encoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def model(dtype: torch.dtype) -> AutoencoderKL:
    torch.manual_seed(0)
    found = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=2,
        norm_num_groups=8,
    )
    return torch.nn.Module.to(found.eval().requires_grad_(False), "cuda", dtype)


def late(program: Program | None) -> Program:
    """As a card with Triton has it."""
    assert program is not None
    return with_late_biases(program)


def through(program: object, given: torch.Tensor, plan: StripPlan) -> torch.Tensor:
    found: list[torch.Tensor] = []
    run(program, given, plan, lambda row, strip: found.append(strip))  # type: ignore[arg-type]
    return torch.cat(found, 2)


@pytest.fixture(autouse=True)
def true_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN would round float32 convolutions to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("strip_bytes", [1, 20000, 2**40])
@pytest.mark.parametrize("recompute", [False, True])
def test_exact(strip_bytes: int, recompute: bool) -> None:
    """In float32, strips on a GPU differ from diffusers on the same GPU by rounding alone, both ways."""
    vae, plan = model(torch.float32), StripPlan(strip_bytes, recompute)
    z, x = torch.randn(1, 4, 14, 10, device="cuda"), torch.randn(1, 3, 56, 40, device="cuda")
    for program, given, expected in (
        (late(describe_decoder(vae)), z, vae.decode(z).sample),
        (late(describe_encoder(vae)), x, vae.encode(x).latent_dist.parameters),
    ):
        assert (through(program, given, plan) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype: torch.dtype) -> None:
    """In 16 bits, strips are as near to float32 as diffusers is on the same GPU, within 0.5 dB."""
    z = torch.randn(1, 4, 32, 32, device="cuda")
    reference, vae = model(torch.float32).decode(z).sample, model(dtype)

    def noise(pixels: torch.Tensor) -> torch.Tensor:
        return 10 * torch.log10((pixels.float() - reference).square().mean())

    found = through(late(describe_decoder(vae)), z.to(dtype), StripPlan(100_000))
    assert noise(found) - noise(vae.decode(z.to(dtype)).sample) < 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_by_products(dtype: torch.dtype) -> None:
    """Attention of wide heads is as near to float32 as PyTorch's own kernel."""
    query, key, value = torch.randn(3, 1000, 512, device="cuda").to(dtype)
    if not by_products(512, dtype, query.device):
        pytest.skip("needs CUDA and Triton")
    exact = torch.softmax(query.double() @ key.double().t() / 512**0.5, 1) @ value.double()
    theirs = torch.nn.functional.scaled_dot_product_attention(query[None, None], key[None, None], value[None, None])
    found = attend(query.clone(), key, value, 300)
    assert (found - exact).square().mean() < 1.2 * (theirs[0, 0] - exact).square().mean()


def test_triton_runs() -> None:
    """On a CUDA device with Triton, its kernels are the ones that run."""
    pytest.importorskip("triton")
    assert type(kernels_for(torch.device("cuda"))).__name__ == "Triton"


def test_strips_save_memory() -> None:
    """As the allocator counts it, strips hold less than 45 % of what diffusers' own decode holds."""
    vae, z = model(torch.bfloat16), torch.randn(1, 4, 128, 128, device="cuda", dtype=torch.bfloat16)
    peaks = []
    for plan in (None, StripPlan(2**18)):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        if plan is None:
            vae.decode(z)
        else:
            through(describe_decoder(vae), z, plan)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 0.45 * peaks[0]
