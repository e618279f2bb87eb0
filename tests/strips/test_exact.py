"""Strips give the pixels of the undivided model. The reference is diffusers' own code."""

from collections.abc import Callable
from importlib import resources

import pytest
import torch
from diffusers import AutoencoderKL

from remote_vae.core import rows, sweep
from remote_vae.core.attention import CHUNK_BYTES, attend, multiplied_in
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.norm import ChannelMoments, Cpu, Plain
from remote_vae.core.products import packs
from remote_vae.core.stages import Program, Upsample
from remote_vae.core.strips import run
from remote_vae.core.sweep import StripPlan
from remote_vae.models.stages.autoencoder_kl import describe_decoder, describe_encoder

from .models import asymmetric, flux2, small

FAMILIES: dict[str, Callable[[], torch.nn.Module]] = {
    "sd": small,
    "flux1": lambda: small(quant=False, layers=2, seed=2),
    "cogview4": lambda: small((8, 32, 64), attention=False, quant=False, seed=3),
    "all of one width": lambda: small((16, 16, 16), seed=4),
    "one level": lambda: small((16,), seed=5),
    "flux2": flux2,
    "asymmetric": asymmetric,
}
FEW_ROWS = 6000  # bytes of a strip
PLANS = {
    f"{name}{', again' if again else ''}": StripPlan(strip_bytes, again, count)
    for name, strip_bytes, count in (
        ("one row", 1, 1),
        ("one row, three at a time", 1, 3),
        ("few rows", FEW_ROWS, 1),
        ("few rows, two at a time", FEW_ROWS, 2),
        ("whole", 2**40, 1),
        ("whole, shared by two", 2**40, 2),
    )
    for again in (False, True)
}
CLOSE = 1e-5  # of the output's scale


def through(program: Program | None, image: torch.Tensor, plan: StripPlan) -> torch.Tensor:
    """The whole output, after a check that its strips come in order and leave nothing out."""
    assert program is not None
    found: list[torch.Tensor] = []

    def sink(row: int, strip: torch.Tensor) -> None:
        assert row == sum(piece.shape[2] for piece in found)
        found.append(strip)

    run(program, image, plan, sink)
    return torch.cat(found, 2)


def apart(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference as a share of the reference's scale."""
    assert found.shape == reference.shape
    return float((found - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_decode(family: str, plan: str) -> None:
    """Decoding in strips of any height differs from the whole decoder by rounding alone, at odd sizes too."""
    model = FAMILIES[family]()
    z = torch.randn(1, model.config.latent_channels, 7, 5)
    found = through(describe_decoder(model), z, PLANS[plan])
    assert apart(found, model.decode(z).sample) < CLOSE


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_encode(family: str, plan: str) -> None:
    """Encoding in strips of any height differs from the whole encoder by rounding alone."""
    model = FAMILIES[family]()
    ratio = 2 ** (len(model.config.block_out_channels) - 1)
    x = torch.randn(1, 3, 7 * ratio, 5 * ratio)
    found = through(describe_encoder(model), x, PLANS[plan])
    assert apart(found, model.encode(x).latent_dist.parameters) < CLOSE


@pytest.mark.parametrize("recompute", [False, True])
def test_workers_change_nothing(recompute: bool) -> None:
    """However many strips are computed at a time, the bits are the same: sums are merged in one order."""
    model, z = small(), torch.randn(1, 4, 24, 5)
    alone, side_by_side = (
        through(describe_decoder(model), z, StripPlan(FEW_ROWS // 8, recompute, count)) for count in (1, 3)
    )
    assert torch.equal(alone, side_by_side)


@pytest.mark.parametrize("kernels", [Plain(), Cpu()])
def test_kernels_agree(kernels: Plain | Cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every device's kernels give the same decode."""
    monkeypatch.setattr(sweep, "kernels_for", lambda device: kernels)
    model, z = small(), torch.randn(1, 4, 6, 5)
    assert apart(through(describe_decoder(model), z, StripPlan(FEW_ROWS)), model.decode(z).sample) < CLOSE


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", [0, 1])
def test_16_bits(dtype: torch.dtype, recompute: bool, seed: int) -> None:
    """In 16 bits, strips are as near to the float32 decode as diffusers is in the same precision, within 0.5 dB."""
    model, z = small((32, 64, 64), layers=2, seed=seed), torch.randn(1, 4, 16, 16)
    reference = model.decode(z).sample
    model, z = cast(model, dtype), z.to(dtype)
    found = through(describe_decoder(model), z, StripPlan(FEW_ROWS, recompute))

    def noise(pixels: torch.Tensor) -> torch.Tensor:
        return 10 * torch.log10((pixels.float() - reference).square().mean())

    assert noise(found) - noise(model.decode(z).sample) < 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_levels(dtype: torch.dtype) -> None:
    """With trained weights in 16 bits, no level of the picture is more than two away from diffusers' own."""
    folder = resources.files("remote_vae.models") / "demo"
    model = cast(AutoencoderKL.from_pretrained(str(folder), low_cpu_mem_usage=False).requires_grad_(False), dtype)
    z = torch.randn(1, model.config.latent_channels, 16, 16).to(dtype)
    pixels = through(describe_decoder(model), z, StripPlan(FEW_ROWS)), model.decode(z).sample
    ours, theirs = ((p.float() * 127.5 + 127.5).clamp(0, 255).round() for p in pixels)
    assert (ours - theirs).abs().max() <= 2


def cast(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """By torch's own method: diffusers' one warns about modules that no VAE has."""
    return torch.nn.Module.to(model, dtype)


@pytest.mark.parametrize("plan", PLANS)
def test_upsampling_as_it_is(plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upsampling whose kernel is not folded, as in float16, gives the same pixels."""
    monkeypatch.setattr(
        "remote_vae.models.stages.parts.Upsample", lambda weight, bias, **_: Upsample(kept.pop(0), bias, folded=False)
    )
    model, z = small(), torch.randn(1, 4, 7, 5)
    kept = [block.upsamplers[0].conv.weight for block in model.decoder.up_blocks if block.upsamplers]
    found = through(describe_decoder(model), z, PLANS[plan])
    assert apart(found, model.decode(z).sample) < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("folded", [True, False])
def test_whole_maps(folded: bool, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a strip is the whole map, GPUs leave the zeros around it to the convolution: the pixels are the same."""
    asked = []
    monkeypatch.setattr("remote_vae.core.filters.form_of", lambda *_, **__: None)
    monkeypatch.setattr("remote_vae.core.filters._is_cpu", lambda device: bool(asked.append(device)))
    model, kept = FAMILIES[family](), []
    if not folded:
        monkeypatch.setattr(
            "remote_vae.models.stages.parts.Upsample",
            lambda weight, bias, **_: Upsample(kept.pop(0), bias, folded=False),
        )
        kept += [block.upsamplers[0].conv.weight for block in model.decoder.up_blocks if block.upsamplers]
    z = torch.randn(1, model.config.latent_channels, 7, 5)
    ratio = 2 ** (len(model.config.block_out_channels) - 1)
    x = torch.randn(1, 3, 7 * ratio, 5 * ratio)
    program = describe_decoder(model)
    for plan in ("whole", "whole, again", "few rows"):
        assert apart(through(program, z, PLANS[plan]), model.decode(z).sample) < CLOSE
        found = through(describe_encoder(model), x, PLANS[plan])
        assert apart(found, model.encode(x).latent_dist.parameters) < CLOSE
    assert asked


def test_dispersion_of_means_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above notice it when strips' variances are averaged about their own means."""

    def merge(self: ChannelMoments, other: ChannelMoments) -> ChannelMoments:
        count = self.count + other.count
        mean = self.mean + (other.mean - self.mean) * (other.count / count)
        return ChannelMoments(count, mean, self.spread + other.spread)

    monkeypatch.setattr(ChannelMoments, "merge", merge)
    model, z = small(), torch.randn(1, 4, 7, 5)
    assert apart(through(describe_decoder(model), z, StripPlan(FEW_ROWS)), model.decode(z).sample) > 100 * CLOSE


def test_halo_rows_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above notice it when a strip does not get the row below it."""
    window = rows.Normalised.window

    def forgetful(self: rows.Normalised, start: int, stop: int, **options: bool) -> torch.Tensor:
        found = window(self, start, stop, **options).clone()
        found[:, :, -1] = 0
        return found

    model, z = small(attention=False), torch.randn(1, 4, 7, 5)
    monkeypatch.setattr(rows.Normalised, "window", forgetful)
    assert apart(through(describe_decoder(model), z, StripPlan(FEW_ROWS)), model.decode(z).sample) > 100 * CLOSE


def test_statistics_far_from_zero() -> None:
    """Values that are large beside their spread keep it: no difference of two large squares is taken."""
    strip = (torch.randn(1, 8, 40, 50) + 3000).contiguous(memory_format=torch.channels_last)
    exact = strip.double()
    for kernels in (Plain(), Cpu()):
        found = kernels.moments(strip[:, :, :13]).merge(kernels.moments(strip[:, :, 13:]))
        variance = found.of_groups(8)[1]
        torch.testing.assert_close(variance.double(), exact.var((0, 2, 3), correction=0), rtol=1e-3, atol=0)


def test_statistics_of_a_large_map() -> None:
    """Of a quarter of a million values, mean and variance are as exact as of a few: their sums are merged in parts."""
    torch.manual_seed(0)
    strip = (torch.randn(1, 8, 512, 512) * 0.7 + torch.randn(1, 8, 1, 1)).contiguous(memory_format=torch.channels_last)
    exact = strip.double()
    for kernels in (Plain(), Cpu()):
        found = kernels.moments(strip)
        variance = found.spread.double() / found.count
        torch.testing.assert_close(variance, exact.var((0, 2, 3), correction=0), rtol=2e-6, atol=0)
        torch.testing.assert_close(found.mean.double(), exact.mean((0, 2, 3)), rtol=0, atol=2e-6)


def test_large_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in chunks of a few queries is exact where scores are large and one position outweighs all others."""
    monkeypatch.setattr("remote_vae.core.attention.CHUNK_BYTES", 500)
    model = small(layers=1, seed=6)
    for block in (model.decoder.mid_block, model.encoder.mid_block):
        block.attentions[0].to_q.weight.mul_(6)
    z = torch.randn(1, 4, 9, 8)
    assert apart(through(describe_decoder(model), z, StripPlan(FEW_ROWS)), model.decode(z).sample) < CLOSE


@pytest.mark.parametrize(("device", "most"), [("cpu", 2**20), ("meta", CHUNK_BYTES + 2**20)])
def test_no_matrix_of_scores(device: str, most: int) -> None:
    """Attention over 16,384 positions, whose scores are a gibibyte, holds none of them where torch has a fused kernel,
    and those of a chunk of queries elsewhere.
    """
    query, key, value = (torch.zeros(16384, 8, device=device) for _ in range(3))
    with torch.inference_mode(), LiveBytes() as live:
        attend(query, key, value)
    assert live.peak <= most


@pytest.mark.skipif(not packs(), reason="this CPU's library packs no kernels")
@pytest.mark.parametrize("positions", [256, 1100])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 4e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_attention_by_packed_keys(positions: int, dtype: torch.dtype, close: float) -> None:
    """On a CPU that multiplies in float32, attention of many channels agrees with the definition, in chunks that
    cores share, and holds what is predicted for tensors without values. In 16 bits only the result is rounded.
    """
    if multiplied_in(dtype, torch.device("cpu")) is not torch.float32:
        pytest.skip(f"this CPU multiplies {dtype}")
    query, key, value = torch.randn(3, positions, 128).to(dtype).unbind()
    expected = torch.softmax(query.double() @ key.double().T / 128**0.5, 1) @ value.double()
    with torch.inference_mode(), LiveBytes() as live:
        found = attend(query.clone(), key, value)
    held, cores = live.peak - query.nbytes, torch.get_num_threads()
    assert apart(found.double(), expected) < close
    with torch.inference_mode(), LiveBytes() as predicted:
        attend(*(torch.empty(positions, 128, dtype=dtype, device="meta") for _ in range(3)), cores=cores)
    assert held <= predicted.peak - 3 * query.nbytes


def test_unknown_parts_are_not_described() -> None:
    """A model with any part that the stages cannot say is left to its own code."""
    relu = small()
    relu.decoder.conv_act = torch.nn.ReLU()
    scaled = small()
    scaled.decoder.up_blocks[0].resnets[0].output_scale_factor = 2.0
    heads = small()
    heads.decoder.mid_block.attentions[0].heads = 2
    for model in (relu, scaled, heads):
        assert describe_decoder(model) is None
        assert describe_encoder(model) is not None
    assert describe_decoder(torch.nn.Identity()) is None


def test_weights_are_shared() -> None:
    """The stages hold the model's own tensors: nothing but folded kernels and norms' scales is there twice."""
    model = small()
    program = describe_decoder(model)
    assert isinstance(model, AutoencoderKL)
    assert program is not None
    assert program.stages[1].weight.data_ptr() == model.decoder.conv_in.weight.data_ptr()  # type: ignore[union-attr]
