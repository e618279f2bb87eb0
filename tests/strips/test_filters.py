"""Convolutions by fewer multiplications and in wider arithmetic give what the definition gives. The reference is
PyTorch's own convolution in float64.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier, local

import pytest
import torch
from torch.nn import functional

from remote_vae.core import filters, four_rows, pairs, products, winograd
from remote_vae.core.executor import choose
from remote_vae.core.filters import Direct, Recombined, arithmetic, filter_for
from remote_vae.core.fold import fold
from remote_vae.core.four_rows import FourRows
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.margin import Margin
from remote_vae.core.own_code import OwnCode
from remote_vae.core.pairs import Paired
from remote_vae.core.stages import Convolution, Downsample, Upsample
from remote_vae.core.strips import predict, run
from remote_vae.core.sweep import MapSize, StripPlan
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.stages.autoencoder_kl import describe_decoder, describe_encoder
from remote_vae.models.vae import DiffusersVAE

from .models import small
from .test_exact import CLOSE, FAMILIES, FEW_ROWS, PLANS, apart, cast, through

CPU = torch.device("cpu")
PACKS = products.packs()

SIZES = ((1, 1), (2, 3), (4, 4), (5, 9), (7, 40), (8, 6))
KINDS = ("convolution", "upsampling", "folded upsampling")


def layer(kind: str, before: int = 24, after: int = 16) -> Convolution | Upsample:
    weight, bias = torch.randn(after, before, 3, 3) / before**0.5, torch.randn(after)
    if kind == "convolution":
        return Convolution(weight, bias)
    return Upsample(fold(weight), bias) if kind.startswith("folded") else Upsample(weight, bias, folded=False)


def taps(stage: Convolution | Upsample, kind: str) -> torch.Tensor:
    """The 3x3 kernel: the outer taps of a folded one are its own, the inner ones are sums of two."""
    weight = stage.weight
    if not kind.startswith("folded"):
        return weight
    rows = torch.stack([weight[:, :, 3], weight[:, :, 2] - weight[:, :, 3], weight[:, :, 0]], 2)
    return torch.stack([rows[..., 3], rows[..., 2] - rows[..., 3], rows[..., 0]], 3).transpose(0, 1)


def exactly(kind: str, stage: Convolution | Upsample, window: torch.Tensor) -> torch.Tensor:
    """In float64; rows beyond the halo's are the caller's, columns beyond the sides are zero."""
    weight = taps(replace(stage, weight=stage.weight.double()), kind)
    if kind != "convolution":
        window = functional.interpolate(window, scale_factor=2.0)[:, :, 1:-1]
    bias = None if stage.bias is None else stage.bias.double()
    return functional.conv2d(window.double(), weight, bias, padding=(0, 1))


def with_margin(window: torch.Tensor, margin: Margin) -> torch.Tensor:
    padded = functional.pad(window, (margin.left, margin.right, 0, margin.below))
    return padded.contiguous(memory_format=torch.channels_last)


def recombined(kind: str, stage: Convolution | Upsample, rows: int, width: int) -> Recombined:
    forms = {
        "convolution": winograd.CONVOLUTION,
        "upsampling": winograd.UPSAMPLING,
        "folded upsampling": winograd.FOLDED_UPSAMPLING,
    }
    return Recombined(stage, forms[kind], forms[kind].tiles(rows, width))


def ways(kind: str, stage: Convolution | Upsample, rows: int, width: int) -> Iterator[Direct | FourRows | Recombined]:
    """Everything that computes a layer."""
    yield Direct(stage)
    yield recombined(kind, stage, rows, width)
    if isinstance(stage, Convolution) and PACKS:
        yield FourRows(stage, rows, width)


@pytest.fixture(params=["packed", "packed, in parts", "not packed", "not packed, in parts"])
def _every_product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiplied by either library, in one sum or in three."""
    if request.param.startswith("not"):
        monkeypatch.setattr(products, "packs", lambda: False)
    if request.param.endswith("parts"):
        monkeypatch.setattr(products, "MOST_IN_A_SUM", 8)


@pytest.mark.usefixtures("_every_product")
@pytest.mark.parametrize("block_bytes", [1, winograd.BLOCK_BYTES])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_definition(kind: str, size: tuple[int, int], block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every form gives the convolution at every size, whether or not tiles fill it, in one block or many."""
    monkeypatch.setattr(winograd, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(four_rows, "BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    stage, (rows, width) = layer(kind), size
    window = torch.randn(1, 24, rows + 2, width)
    for filter_ in ways(kind, stage, rows, width):
        found = filter_(with_margin(window, filter_.margin(rows, width)), rows, width)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert apart(found.double(), exactly(kind, stage, window)) < 4e-6


@pytest.mark.usefixtures("_every_product")
@pytest.mark.parametrize("block_bytes", [1, winograd.BLOCK_BYTES])
@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("lead", [0, 1, 2])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_taps_in_time(frames: int, lead: int, side: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A causal convolution over the frames of a window, of which the first ones are only read; others are zero."""
    monkeypatch.setattr(winograd, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(pairs, "BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    stage = Convolution(torch.randn(16, 24, 3, side, side) / 24**0.5, torch.randn(16))
    rows, width = 5, 9
    window = torch.randn(lead + frames, 24, rows + 2 * stage.halo, width)
    padded = functional.pad(window.double().transpose(0, 1)[None], (stage.halo, stage.halo, 0, 0, 2 - lead, 0))
    expected = functional.conv3d(padded, stage.weight.double(), stage.bias.double())[0].transpose(0, 1)
    ways: list[Direct | Recombined | Paired] = [Direct(stage)]
    if side == 3:
        ways += [recombined("convolution", stage, rows, width), Paired(stage, rows, width)]
    for filter_ in ways:
        found = filter_(with_margin(window, filter_.margin(rows, width)), rows, width, lead)
        assert apart(found.double(), expected) < 4e-6


@pytest.mark.parametrize("side", [1, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_precision_is_that_of_the_window(dtype: torch.dtype, side: int) -> None:
    """Whatever a filter multiplies in, and whether its weights are larger than the window or not."""
    stage = Convolution(torch.randn(16, 24, 3, 3, 3).to(dtype) / 24, torch.randn(16).to(dtype))
    window = torch.randn(3, 24, side + 2, side).to(dtype)
    flat = replace(stage, weight=stage.weight[:, :, -1])
    for filter_ in (Direct(stage), Paired(stage, side, side), *ways("convolution", flat, side, side)):
        found = filter_(with_margin(window, filter_.margin(side, side)), side, side, 2)
        assert found.dtype is dtype
        assert found.shape == (1, 16, side, side)


def test_two_cores_make_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls at a time make different rows of a new kernel, so neither waits for all that the other one makes."""
    met, pack = Barrier(2), products.Matrices._packed
    first = local()

    def packed(kernel: products.Matrices, matrices: torch.Tensor, shape: tuple[int, ...]) -> list[torch.Tensor]:
        if not hasattr(first, "made"):
            first.made = met.wait(30)  # until the other one makes a row too
        return pack(kernel, matrices, shape)

    monkeypatch.setattr(products.Matrices, "_packed", packed)
    stage, window = layer("convolution"), torch.randn(1, 24, 6, 8)
    filter_ = recombined("convolution", stage, 4, 8)
    given = with_margin(window, filter_.margin(4, 8))
    with ThreadPoolExecutor(2) as pool:
        found = [call.result() for call in [pool.submit(filter_, given, 4, 8) for _ in range(2)]]
    assert torch.equal(*found)


def one_by_one(stage: Convolution | Upsample, kind: str, window: torch.Tensor) -> torch.Tensor:
    """The definition in float32, each product added to the sum before it: the same rounding on every machine."""
    weight = taps(stage, kind)
    if kind != "convolution":
        window = functional.interpolate(window, scale_factor=2.0)[:, :, 1:-1]
    values = functional.unfold(functional.pad(window, (1, 1)), 3)[0]
    total = torch.zeros(len(weight), values.shape[1])
    for factors, given in zip(weight.flatten(1).unbind(1), values, strict=True):
        total += factors[:, None] * given
    return total if stage.bias is None else total + stage.bias[:, None]


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_small(kind: str) -> None:
    """With as many channels as real decoders have, rounding stays within twice that of a plain sum in float32."""
    stage = layer(kind, 512, 128)
    window = torch.randn(1, 512, 6, 16).contiguous(memory_format=torch.channels_last)
    exact = exactly(kind, stage, window)
    plain = one_by_one(stage, kind, window).view_as(exact)
    found = [filter_(with_margin(window, filter_.margin(4, 16)), 4, 16) for filter_ in ways(kind, stage, 4, 16)]
    *errors, of_plain = [(result.double() - exact).square().mean().sqrt() for result in (*found, plain)]
    assert max(errors) < 2 * of_plain


@pytest.mark.parametrize("kind", ["convolution", "upsampling", "downsampling"])
def test_long_sums(kind: str) -> None:
    """A direct convolution of many channels is several sums, so a value of one channel swallows few of the others."""
    channels, large = 512, 2.0**24
    stage = layer(kind, channels, 2) if kind != "downsampling" else Downsample(torch.empty(2, channels, 3, 3), None)
    stage = replace(stage, weight=torch.ones(2, channels, 3, 3), bias=None)
    window = torch.ones(1, channels, 7, 7).contiguous(memory_format=torch.channels_last)
    window[:, 0] = large
    found = Direct(stage)(window, 5, 7)[..., 1:-1]
    others = 9 * (channels - 1)
    assert float((found - 9 * large).min()) >= others * 3 / 4 - 16, "other sums are not rounded"


@pytest.fixture(params=["rows", "rows and columns"])
def always(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers are recombined too."""
    monkeypatch.setattr(winograd, "pays", lambda *layer: True)
    monkeypatch.setattr(four_rows, "pays", lambda *layer: PACKS and request.param == "rows")


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_models(family: str, plan: str) -> None:
    """Whole decoders and encoders whose every 3x3 convolution is recombined agree with diffusers, at odd sizes too."""
    model = FAMILIES[family]()
    z = torch.randn(1, model.config.latent_channels, 7, 5)
    assert apart(through(describe_decoder(model), z, PLANS[plan]), model.decode(z).sample) < CLOSE
    ratio = 2 ** (len(model.config.block_out_channels) - 1)
    x = torch.randn(1, 3, 7 * ratio, 5 * ratio)
    assert apart(through(describe_encoder(model), x, PLANS[plan]), model.encode(x).latent_dist.parameters) < CLOSE


def test_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide layers of large maps are recombined in float32 on a CPU; narrow ones, small maps and other devices not.

    Rows are, and columns too if the library has no packed kernels. Then on a CPU with wide vectors only layers of twice
    as many channels are.
    """
    wide = layer("convolution", 64, 64)
    assert isinstance(filter_for(wide, 64, 64), FourRows if PACKS else Recombined)
    with monkeypatch.context() as patch:
        patch.setattr(four_rows, "packs", lambda: False)
        assert isinstance(filter_for(wide, 64, 64), Recombined)
        patch.setattr(winograd, "vectors_are_wide", lambda: True)
        assert isinstance(filter_for(wide, 64, 64), Direct)
        assert isinstance(filter_for(layer("convolution", 128, 128), 64, 64), Recombined)
    assert isinstance(filter_for(wide, 8, 8), Direct)
    assert isinstance(filter_for(layer("convolution", 64, 3), 64, 64), Direct)
    assert isinstance(filter_for(Convolution(torch.empty(64, 64, 3, 3, device="meta"), None), 64, 64), Direct)
    assert isinstance(filter_for(Convolution(torch.randn(64, 64, 1, 1), None), 64, 64), Direct)


@pytest.fixture(params=[True, False], ids=["fast 16 bits", "slow 16 bits"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """A CPU of either kind, whatever this one is."""
    monkeypatch.setattr(filters, "_multiplies", lambda dtype: request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic(dtype: torch.dtype, fast: bool) -> None:
    """Only a CPU that has no fast products of 16 bits multiplies in float32; other devices are left alone."""
    assert arithmetic(dtype, CPU) is (dtype if fast else torch.float32)
    assert arithmetic(dtype, torch.device("meta")) is dtype
    assert arithmetic(torch.float32, CPU) is torch.float32


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_slow_16_bits(dtype: torch.dtype, recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiplied in float32 and kept in 16 bits, a decode is as near to float32's as diffusers', within 0.5 dB."""
    monkeypatch.setattr(filters, "_multiplies", lambda dtype: False)
    model, z = small((32, 64, 64), layers=2), torch.randn(1, 4, 16, 16)
    reference = model.decode(z).sample
    model, z = cast(model, dtype), z.to(dtype)
    found = through(describe_decoder(model), z, StripPlan(FEW_ROWS, recompute))
    assert found.dtype is dtype

    def noise(pixels: torch.Tensor) -> torch.Tensor:
        return 10 * torch.log10((pixels.float() - reference).square().mean())

    assert noise(found) - noise(model.decode(z).sample) < 0.5


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("plan", [StripPlan(2**40), StripPlan(64 * 1024), StripPlan(64 * 1024, recompute=True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prediction(dtype: torch.dtype, plan: StripPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """What recombining and wider arithmetic hold for themselves is predicted within 15 % too, or less than predicted
    where a whole 16-bit map is widened, which no planner picks.
    """
    for room in ("attention", "steps"):
        monkeypatch.setattr(f"remote_vae.core.{room}.CHUNK_BYTES", 64 * 1024)
    monkeypatch.setattr(winograd, "BLOCK_BYTES", 64 * 1024)
    monkeypatch.setattr(four_rows, "BLOCK_BYTES", 64 * 1024)
    monkeypatch.setattr(filters, "_multiplies", lambda dtype: False)
    model = cast(small((16, 32, 64, 64), layers=2), dtype)
    for program, shape in ((describe_decoder(model), (1, 4, 20, 24)), (describe_encoder(model), (1, 3, 160, 192))):
        assert program is not None
        with LiveBytes() as live:
            run(program, torch.randn(shape).to(dtype), plan, lambda row, strip: None)
        assert live.current == 0
        predicted = predict(program, MapSize(shape[2], shape[3], shape[1], dtype.itemsize), plan)
        widened = dtype is torch.bfloat16 and plan.strip_bytes == 2**40
        assert -0.15 < predicted / live.peak - 1 < (0.35 if widened else 0.15)


def test_small_pictures_in_16_bits(fast: bool) -> None:
    """The model's own code, which small pictures run by, would crawl in 16 bits on a CPU that has none."""
    vae = DiffusersVAE(cast(small(), torch.bfloat16), source="seeded", revision="", family=family_of(MODELS["sd1"]))
    chosen, *_ = choose(vae.decoders, (1, 4, 8, 8), torch.bfloat16)
    assert isinstance(chosen.executor, OwnCode) is fast
