"""Sana's autoencoder and its kind run a few rows at a time: linear attention in two passes, the rest with rows kept."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from remote_vae.core import blocks
from remote_vae.core.canvas import Canvas
from remote_vae.core.decode import decode
from remote_vae.core.executor import RunOptions, choose
from remote_vae.core.layout import fit_latent
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.local import Each, Local, Near, Residual, Stage, Sums
from remote_vae.errors import TooLarge
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.stages.deep_compression import describe
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Scaling

from .cases.dc_ae import dc_ae, sana

BUILDS: dict[str, Callable[[], Any]] = {"sana": sana, "dc-ae-f32c32-in": dc_ae}
WIDE = {"latent_channels": 8, "attention_head_dim": 8} | {
    f"{half}_block_out_channels": [16, 32, 32] for half in ("encoder", "decoder")
}
LATENTS = ((2, 4, 5, 7), (1, 4, 1, 1), (1, 4, 17, 6))
PIXELS = ((2, 3, 20, 28), (1, 3, 4, 4), (1, 3, 68, 12))


def served(module: Any) -> DiffusersVAE:
    """Weights, biases and statistics that begin as zeros or ones get values."""
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            if weight.ndim == 1:
                weight.data = torch.rand(weight.shape) + (0.5 if name == "weight" else -0.5)
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
            part.running_var.uniform_(0.2, 3)  # type: ignore[union-attr]
    return DiffusersVAE(module.eval(), source="m", revision="", family=family_of(MODELS["sana"]))


@pytest.fixture(params=BUILDS)
def vae(request: pytest.FixtureRequest) -> DiffusersVAE:
    torch.manual_seed(7)
    return served(BUILDS[request.param]())


def rows_of(vae: DiffusersVAE, *, decoding: bool) -> Any:
    return next(each for each in (vae.decoders if decoding else vae.encoders) if each.name == "rows")


def through(executor: Any, z: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    canvas = Canvas(len(like), like.shape[2], lambda block: block, row_axis=2)
    executor.run(z, canvas.put, lambda: None)
    return canvas.output


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("block_bytes", [1, 2000, 2**23])
@pytest.mark.parametrize(("shape", "decoding"), [(z, True) for z in LATENTS] + [(x, False) for x in PIXELS])
@torch.inference_mode()
def test_exact(vae: DiffusersVAE, shape: tuple[int, ...], decoding: bool, block_bytes: int) -> None:
    """Blocks of one row and more give what the module's own code gives, for odd sizes and batches, both ways."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    expected = (vae.decode if decoding else vae.encode)(z)
    executor = replace(rows_of(vae, decoding=decoding), block_bytes=block_bytes)
    assert error(through(executor, z, expected), expected) < 1e-5


@pytest.mark.parametrize("decoding", [True, False])
@torch.inference_mode()
def test_half_precision(decoding: bool) -> None:
    """In bfloat16 the distance to float32 is not above that of the module's own code by more than half a decibel."""
    torch.manual_seed(7)
    vae = served(sana(**WIDE))
    z = torch.randn((1, 8, 9, 6) if decoding else (1, 3, 36, 24))
    exact = (vae.decode if decoding else vae.encode)(z)
    torch.nn.Module.to(vae.module, torch.bfloat16)
    vae = DiffusersVAE(vae.module, source="m", revision="", family=family_of(MODELS["sana"]))
    own = (vae.decode if decoding else vae.encode)(z.bfloat16()).float()
    found = through(rows_of(vae, decoding=decoding), z.bfloat16(), exact).float()
    ours, theirs = ((part - exact).square().mean().log10() * -10 for part in (found, own))
    assert ours > theirs - 0.5


def planted(stages: tuple[Stage, ...], change: Callable[[Stage], Stage]) -> tuple[Stage, ...]:
    found: list[Stage] = []
    for stage in stages:
        match stage:
            case Residual():
                main, shortcut = (planted(part, change) for part in (stage.main, stage.shortcut))
                found.append(change(replace(stage, main=main, shortcut=shortcut)))
            case Sums():
                found.append(change(replace(stage, main=planted(stage.main, change))))
            case _:
                found.append(change(stage))
    return tuple(found)


def forgotten_halo(stage: Stage) -> Stage:
    if not isinstance(stage, Near):
        return stage

    def function(window: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        above = stage.halo - top
        return stage.function(torch.cat([0 * window[:, :, :above], window[:, :, above:]], 2), top, bottom)

    return replace(stage, function=function)


def sum_of_first_rows(stage: Stage) -> Stage:
    if not isinstance(stage, Sums):
        return stage
    seen: list[None] = []

    def summed(rows: torch.Tensor) -> torch.Tensor:
        seen.append(None)
        return stage.summed(rows) * (len(seen) == 1)

    return replace(stage, summed=summed)


def no_shortcut(stage: Stage) -> Stage:
    if not isinstance(stage, Residual) or not stage.shortcut:
        return stage
    (last,) = stage.shortcut
    assert isinstance(last, Each)
    return replace(stage, shortcut=(replace(last, function=lambda rows, first: 0 * last.function(rows, first)),))


@pytest.mark.parametrize("change", [forgotten_halo, sum_of_first_rows, no_shortcut])
@torch.inference_mode()
def test_planted_errors(vae: DiffusersVAE, change: Callable[[Stage], Stage]) -> None:
    """The sizes of these tests show a forgotten row, a sum of one block, and a shortcut that is left out."""
    z = torch.randn(LATENTS[0], generator=torch.Generator().manual_seed(3))
    executor = replace(rows_of(vae, decoding=True), block_bytes=2000)
    broken = replace(executor, program=Local((planted(executor.program.stages, change),), pictures=True))
    assert error(through(broken, z, vae.decode(z)), vae.decode(z)) > 1e-4


@pytest.mark.parametrize(("shape", "decoding"), [((1, 8, 24, 20), True), ((1, 3, 96, 80), False)])
@torch.inference_mode()
def test_memory(shape: tuple[int, ...], decoding: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows take a fraction of the memory of the module's own code, and it is predicted within 15 %."""
    monkeypatch.setattr(blocks, "cores", lambda device: 1)
    torch.manual_seed(7)
    vae, z = served(sana(**WIDE)), torch.randn(shape)
    executor = replace(rows_of(vae, decoding=decoding), block_bytes=2**14)
    peaks = []
    for run in (lambda: executor.run(z.clone(), lambda *block: None, lambda: None), lambda: vae.decode(z)):
        with LiveBytes() as live:
            run() if decoding or not peaks else vae.encode(z)
        peaks.append(live.peak)
    assert abs(executor.peak_bytes(shape, z.dtype, 0) / peaks[0] - 1) < 0.15
    assert peaks[0] < 0.35 * peaks[1]


@torch.inference_mode()
def test_when_memory_is_short(vae: DiffusersVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that does not fit at once runs in rows; one that does not fit so either is refused with the numbers."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", {"cpu": 2**14})
    recipe, z = MODELS["sana"].recipe, torch.randn(1, 4, 40, 40)
    own, *_ = choose(vae.decoders, tuple(z.shape), z.dtype, budget=2**40)
    assert own.executor.name == "whole"
    assert own.peak_bytes is not None
    fit = fit_latent(recipe, vae.info, tuple(z.shape), model="m", height=None, width=None)

    def run(budget: int) -> Any:
        options = RunOptions(budget=lambda: budget)
        return decode(vae, recipe, z, fit=fit, scaling=Scaling(), output=Output.RAW, options=options)

    found = run(own.peak_bytes - 1)
    assert found.plan == "rows"
    assert error(found.tensor, run(2**40).tensor) < 1e-5
    with pytest.raises(TooLarge, match=r"needs \d+ MB of memory with plan rows; 0 MB are free"):
        run(10**4)


@pytest.mark.parametrize("part", ["decoder.conv_act", "decoder.up_blocks.0.0.conv", "encoder.down_blocks.2.0.attn"])
def test_an_unknown_part(part: str) -> None:
    """An architecture with a part that the stages do not have runs by its own code."""
    module = sana()
    assert describe(module) is not None
    module.set_submodule(part, torch.nn.GELU())
    assert describe(module) is None
