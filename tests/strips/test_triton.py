"""The kernels for CUDA devices; without one they are run by Triton's interpreter: the same code, on a CPU."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch

from remote_vae.core import attention, has_triton, local, root_mean_square, rows, steps, sweep
from remote_vae.core.attention import attend, by_products
from remote_vae.core.has_triton import why_no_triton
from remote_vae.core.late_biases import with_late_biases
from remote_vae.core.norm import Cpu, Plain
from remote_vae.core.stages import Norm, Program
from remote_vae.core.sweep import StripPlan
from remote_vae.models.stages.autoencoder_kl import describe_decoder, describe_encoder

from .models import small
from .test_exact import CLOSE, FEW_ROWS, apart, through

pytest.importorskip("triton")
from remote_vae.core import attention_triton, norm_triton, triton_trial

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def on_the_device() -> Iterator[None]:
    with torch.device(DEVICE):
        yield


@pytest.fixture
def kernels() -> norm_triton.Triton:
    return norm_triton.Triton()


def strip(
    channels: int, rows: int, width: int, dtype: torch.dtype, *, frames: int = 1, right: int = 0, below: int = 0
) -> torch.Tensor:
    """A part of a map that may have more columns and more rows."""
    whole = (torch.randn(frames, channels, rows + below, width + right) * 3 + 20).to(dtype)
    return whole.contiguous(memory_format=torch.channels_last)[:, :, :rows, :width]


SHAPES = [(8, 3, 5), (64, 8, 16), (96, 9, 31), (200, 2, 7)]
PARTS: list[dict[str, int]] = [{}, {"frames": 3, "right": 2, "below": 1}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (24, 1, 1)])
@pytest.mark.parametrize("part", PARTS)
def test_moments(part: dict[str, int], shape: tuple[int, int, int], dtype: torch.dtype, kernels: Any) -> None:
    """Statistics of the groups of any map, also of a part of a map, are those of the values in double precision."""
    given = strip(*shape, dtype, **part)
    for groups in (shape[0], 8):
        close(kernels.moments(given).of_groups(groups), given, groups)


def close(found: tuple[torch.Tensor, torch.Tensor], values: torch.Tensor, groups: int) -> None:
    exact = values.double().transpose(0, 1).reshape(groups, -1)
    for one, expected in zip(found, (exact.mean(1), exact.var(1, correction=0)), strict=True):
        per_channel = expected.repeat_interleave(values.shape[1] // groups)
        torch.testing.assert_close(one.double(), per_channel, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most", [1, 3, 512])
def test_many_parts(most: int, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of several tiles, a last one that is not full, and strips are merged by their true counts."""
    monkeypatch.setattr(norm_triton, "MOST_PARTS", most)
    monkeypatch.setattr(norm_triton, "LEAST_TILES", 1)
    monkeypatch.setattr(norm_triton, "TILE_PARTS", 4)
    given = strip(16, 21, 37, torch.float32)
    given += torch.linspace(0, 50, 21).view(1, 1, -1, 1)  # the means of blocks lie far apart
    first, *others = (kernels.moments(rows) for rows in torch.split(given, 8, 2))
    close(reduce(lambda one, other: one.merge(other), others, first).of_groups(4), given, 4)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_normalise(shape: tuple[int, int, int], dtype: torch.dtype, silu: bool, kernels: Any) -> None:
    """Norm and SiLU are those of plain PyTorch, and nothing beside the rows is written."""
    channels = shape[0]
    stage = Norm(8, 1e-6, torch.randn(channels), torch.randn(channels))
    source, moments = strip(*shape, dtype, right=1), Plain().moments(strip(*shape, torch.float32))
    into, expected = (torch.zeros_like(strip(*shape, dtype, right=2)) for _ in range(2))
    frame = torch.full((1, channels, shape[1], shape[2] + 2), 7.0, dtype=dtype)
    frame = frame.contiguous(memory_format=torch.channels_last)
    into = frame[..., : shape[2]]
    kernels.normalise(source, into, stage, moments.of_groups(8), silu=silu)
    Plain().normalise(source, expected, stage, moments.of_groups(8), silu=silu)
    torch.testing.assert_close(into, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    assert (frame[..., shape[2] :] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", PARTS)
def test_frames(part: dict[str, int], dtype: torch.dtype, kernels: Any) -> None:
    """Frames, and rows of a larger map, are normalised as one after the other; what lies beside them stays."""
    source, moments = strip(24, 3, 5, dtype, **part), Plain().moments(strip(24, 3, 5, torch.float32))
    stage, into = Norm(4, 1e-6, torch.randn(24), torch.randn(24)), strip(24, 3, 5, dtype, **part)
    around = (into._base if into._base is not None else into).clone()
    kernels.normalise(source, into, stage, moments.of_groups(4), silu=True)
    expected = torch.empty_like(source)
    Plain().normalise(source, expected, stage, moments.of_groups(4), silu=True)
    torch.testing.assert_close(into, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    beside(into, around)


def beside(into: torch.Tensor, before: torch.Tensor) -> None:
    """Nothing was written but `into`."""
    after = (into._base if into._base is not None else into).clone()
    for values in (after, before):
        values.as_strided(into.shape, into.stride()).zero_()
    assert torch.equal(after, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 64, 96, 200])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("weighted", "silu"), [(True, True), (True, False), (False, True), (None, True)])
def test_root_mean_square(
    weighted: bool | None, silu: bool, part: dict[str, int], channels: int, dtype: torch.dtype
) -> None:
    """The norm of one position and SiLU are those of plain PyTorch, for zeros too, with a weight, without, or alone."""
    norm = None if weighted is None else local.Norm(torch.randn(channels) if weighted else None)
    source, into = strip(channels, 3, 5, dtype, **part), strip(channels, 3, 5, dtype, **part)
    source[:, :, 1] = 0
    before = (into._base if into._base is not None else into).clone()
    norm_triton.divide(source, into, norm, root_mean_square.LEAST, silu=silu)
    expected = torch.empty_like(source)
    root_mean_square.normalise(source, expected, norm, silu=silu)
    torch.testing.assert_close(into, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    beside(into, before)


@pytest.mark.parametrize("lies", [torch.contiguous_format, torch.channels_last])
def test_any_layout(lies: torch.memory_format, kernels: Any) -> None:
    """Maps that a model's own functions made lie in any layout, and so may the targets."""
    given = strip(24, 3, 5, torch.float32, frames=2).contiguous(memory_format=lies)
    other = torch.contiguous_format if lies is torch.channels_last else torch.channels_last
    norm, into = local.Norm(torch.randn(24)), torch.empty_like(given, memory_format=other)
    norm_triton.divide(given, into, norm, root_mean_square.LEAST, silu=True)
    expected = torch.empty_like(given)
    root_mean_square.normalise(given, expected, norm, silu=True)
    torch.testing.assert_close(into, expected)
    stage, of_groups = Norm(4, 1e-6, torch.randn(24), torch.randn(24)), kernels.moments(given).of_groups(4)
    close(of_groups, given, 4)
    kernels.normalise(given, into, stage, of_groups, silu=True)
    Plain().normalise(given, expected, stage, of_groups, silu=True)
    torch.testing.assert_close(into, expected)


def test_pixels_that_are_not_dense(kernels: Any) -> None:
    """A column of a map with more channels has rows that are no whole pixels apart."""
    given = torch.randn(2, 12, 5, 1).contiguous(memory_format=torch.channels_last)[:, :8]
    stage, into = Norm(4, 1e-6, torch.randn(8), torch.randn(8)), torch.zeros_like(given)
    close(kernels.moments(given).of_groups(4), given, 4)
    kernels.normalise(given, into, stage, kernels.moments(given).of_groups(4), silu=True)
    expected = torch.empty_like(given)
    Plain().normalise(given, expected, stage, Plain().moments(given).of_groups(4), silu=True)
    torch.testing.assert_close(into, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("frame", "row"), [(2**31, 48), (96, 2**31)])
def test_more_than_32_bits(frame: int, row: int, kernels: Any) -> None:
    """Frames and rows may be more than 2**31 values apart, as those of large clips are."""
    lies = (2, 16, 2, 3), (frame, 1, row, 16)
    source, into = (torch.empty(max(frame, row) + 4096, dtype=torch.float16).as_strided(*lies) for _ in range(2))
    source.copy_(small := torch.randn(2, 16, 2, 3).half())
    stage, of_groups = Norm(4, 1e-6, torch.randn(16), torch.randn(16)), kernels.moments(source).of_groups(4)
    close(of_groups, small, 4)
    kernels.normalise(source, into, stage, of_groups, silu=True)
    Plain().normalise(small, expected := torch.empty_like(small), stage, of_groups, silu=True)
    torch.testing.assert_close(into.clone(), expected, rtol=2e-3, atol=1e-5)
    norm_triton.divide(source, into, None, 0.0, silu=True)
    torch.testing.assert_close(into.clone(), torch.nn.functional.silu(small), rtol=2e-3, atol=1e-5)
    kernels.add(source, into, None, measured=False)
    torch.testing.assert_close(source.clone(), small + torch.nn.functional.silu(small), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("measured", [False, True])
def test_add(measured: bool, biased: bool, part: dict[str, int], dtype: torch.dtype, kernels: Any) -> None:
    """A branch and a bias are added in place and rounded once; the statistics are those of what is stored."""
    into, branch = strip(200, 9, 31, dtype, **part), strip(200, 9, 31, dtype, **part)
    around, bias = (into._base if into._base is not None else into).clone(), torch.randn(200) if biased else None
    expected = into.float() + branch.float() + (0 if bias is None else bias.view(1, -1, 1, 1))
    found = kernels.add(into, branch, bias, measured=measured)
    torch.testing.assert_close(into.float(), expected, rtol=torch.finfo(dtype).eps, atol=1e-5)
    assert (found is not None) == measured
    if found is not None:
        close(found.of_groups(8), into, 8)
    beside(into, around)


@pytest.mark.parametrize("lies", [torch.contiguous_format, torch.channels_last])
def test_add_in_any_layout(lies: torch.memory_format, kernels: Any) -> None:
    """The maps may lie in any layout."""
    into, branch = (strip(24, 3, 5, torch.float32).contiguous(memory_format=lies) for _ in range(2))
    other = torch.contiguous_format if lies is torch.channels_last else torch.channels_last
    expected = into + branch
    close(kernels.add(into, branch.contiguous(memory_format=other), None, measured=True).of_groups(4), expected, 4)
    torch.testing.assert_close(into, expected)


@pytest.mark.parametrize("others", [Plain(), Cpu()])
def test_offset(others: Plain | Cpu, kernels: Any) -> None:
    """A norm of values that lack a constant of each channel is that of the sums, by the kernels of every device."""
    if DEVICE != "cpu" and isinstance(others, Cpu):
        pytest.skip("for CPUs")
    values, offset = strip(24, 9, 31, torch.float32), 5 * torch.randn(24)
    whole, norm = values + offset.view(1, -1, 1, 1), Norm(4, 1e-6, torch.randn(24), torch.randn(24))
    expected = torch.nn.functional.group_norm(whole, 4, norm.weight, norm.bias, norm.eps)
    for one in (kernels, others):
        into = torch.empty_like(values)
        one.normalise(values, into, norm, one.moments(values).of_groups(4, offset), silu=False)
        torch.testing.assert_close(into, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("again", [False, True])
def test_through_a_model(again: bool, kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model decodes and encodes by these kernels as by diffusers' own code, with its biases where GPUs have them."""
    monkeypatch.setattr(sweep, "kernels_for", lambda device: kernels)
    model, z, x = small((8, 16, 16)), torch.randn(1, 4, 4, 3), torch.randn(1, 3, 16, 12)
    plan = StripPlan(FEW_ROWS, again)
    assert apart(through(late(describe_decoder(model)), z, plan), model.decode(z).sample) < CLOSE
    assert apart(through(late(describe_encoder(model)), x, plan), model.encode(x).latent_dist.parameters) < CLOSE


def test_a_model_in_16_bits(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits these kernels are as near to float32 as diffusers is in the same precision, within 0.5 dB.

    Not in bfloat16, because the interpreter cuts what cards round.
    """
    monkeypatch.setattr(sweep, "kernels_for", lambda device: kernels)
    model, z = small((16, 32, 32)), torch.randn(1, 4, 6, 6)
    reference = model.decode(z).sample
    model, z = torch.nn.Module.to(model, torch.float16), z.half()
    found = through(late(describe_decoder(model)), z, StripPlan(2**40))
    noise = [10 * (pixels.float() - reference).square().mean().log10() for pixels in (found, model.decode(z).sample)]
    assert noise[0] - noise[1] < 0.5


def late(program: Program | None) -> Program:
    assert program is not None
    return with_late_biases(program)


def test_they_compile() -> None:
    """The compiler takes every kernel for cards of the generations that are in use; it needs no card for that."""
    compiled = Path(__file__).with_name("compile_triton.py")
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    words = [sys.executable, str(compiled)]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert {line.split()[0] for line in ran.stdout.splitlines()} == {
        name
        for room in (norm_triton, attention_triton, triton_trial)
        for name, found in vars(room).items()
        if name[0] == "_" and hasattr(found, "fn") and name != "_place"
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("scale", [1, 40])
def test_attention_by_products(scale: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is exact for any number of positions, and if one position outweighs all others."""
    monkeypatch.setattr(attention_triton, "TILE_SCORES", 64)
    query, key, value = torch.randn(3, 150, 24).to(dtype)
    query *= scale
    exact = torch.softmax(query.double() @ key.double().t() / 24**0.5, 1) @ value.double()
    attend(query[:70], key, value, 32)
    torch.testing.assert_close(query[:70].double(), exact[:70], rtol=0, atol=8 * scale * torch.finfo(dtype).eps)


def test_a_model_whose_attention_is_by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """It decodes as by diffusers' own code."""
    monkeypatch.setattr(steps, "by_products", lambda channels, dtype, device: True)
    monkeypatch.setattr(steps, "QUERIES", 256)
    model, z = small((16,)), torch.randn(1, 4, 20, 30)
    assert apart(through(describe_decoder(model), z, StripPlan(FEW_ROWS)), model.decode(z).sample) < CLOSE


def test_where_attention_is_by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide heads in 16 bits on cards with Triton take products; everything else is left to PyTorch."""
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(attention, "has_triton", lambda device: device == cuda)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert by_products(512, torch.bfloat16, cuda)
    assert not by_products(256, torch.bfloat16, cuda)
    assert not by_products(512, torch.float32, cuda)
    assert not by_products(512, torch.bfloat16, cpu)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not by_products(512, torch.bfloat16, cuda)


def test_where_they_run(monkeypatch: pytest.MonkeyPatch, kernels: Any) -> None:
    """CUDA devices take these kernels if Triton runs there, and plain PyTorch if it does not."""
    cuda = torch.device("cuda")
    assert why_no_triton(torch.device(DEVICE)) is None
    monkeypatch.setattr(rows, "has_triton", lambda device: device == cuda)
    assert type(rows.kernels_for(cuda)).__name__ == "Triton"
    monkeypatch.setattr(rows, "has_triton", lambda device: False)
    assert isinstance(rows.kernels_for(cuda), Plain)
    assert isinstance(rows.kernels_for(torch.device("mps")), Plain)


class Failing:
    """Stands for a compiled function."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getitem__(self, grid: object) -> Any:
        raise self._error


def test_a_machine_that_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C compiler, or on a card that is too old for Triton, the reason is known, and plain PyTorch runs."""
    monkeypatch.setattr(triton_trial, "_sum", Failing(RuntimeError("Failed to find C compiler.\nSpecify one")))
    found = why_no_triton.__wrapped__(torch.device(DEVICE))
    assert found == "RuntimeError: Failed to find C compiler. Specify one"
    monkeypatch.setattr(has_triton, "why_no_triton", lambda device: found)
    assert isinstance(rows.kernels_for(torch.device("cuda")), Plain)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), torch.AcceleratorError("illegal memory access")])
def test_a_device_that_is_full_or_broken(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """What says nothing of Triton is raised, and not remembered."""
    monkeypatch.setattr(triton_trial, "_sum", Failing(error))
    with pytest.raises(type(error)):
        why_no_triton.__wrapped__(torch.device(DEVICE))


def test_kernels_that_compute_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that runs and writes nothing is not trusted."""
    nothing = type("Nothing", (), {"__getitem__": lambda self, grid: lambda source, into, tile: into.zero_()})()
    monkeypatch.setattr(triton_trial, "_sum", nothing)
    assert why_no_triton.__wrapped__(torch.device(DEVICE)) == "its kernels compute wrongly"
