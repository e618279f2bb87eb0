"""Jobs that hand over the frames of a video: what comes, what is held meanwhile, and when a job may begin again."""

from typing import Any

import pytest
import torch

from remote_vae.core.blocks import Blocks
from remote_vae.core.decode import decode
from remote_vae.core.executor import RunOptions
from remote_vae.core.layout import fit_latent
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.relay import Relay, RelayCanvas
from remote_vae.errors import NonFiniteOutput, TooLarge
from remote_vae.models.families import MODELS, family_of, find_recipe
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Scaling, ScalingMode

from .test_blocks import wan

RECIPE = find_recipe("wan2.1")
SMALL, ALL = 1, 2**40  # bytes of a block


@pytest.fixture(scope="module")
def vae() -> DiffusersVAE:
    return DiffusersVAE(wan(), source="seeded", revision="", family=family_of(MODELS["wan2.1"]))


def latent(frames: int, side: int = 2) -> torch.Tensor:
    return torch.randn(1, 16, frames, side, side, generator=torch.Generator().manual_seed(0))


def through(vae: DiffusersVAE, z: torch.Tensor, options: RunOptions, output: Output = Output.UINT8) -> Any:
    fit = fit_latent(RECIPE, vae.info, tuple(z.shape), model="wan2.1", height=None, width=None)
    return decode(vae, RECIPE, z, fit=fit, scaling=Scaling(ScalingMode.NONE), output=output, options=options)


@pytest.mark.parametrize("output", [Output.RAW, Output.UNIT, Output.UINT8])
@pytest.mark.parametrize("plan", ["frames", "rows", "whole"])
def test_the_frames_of_every_plan(vae: DiffusersVAE, plan: str, output: Output) -> None:
    """Blocks in order, and the last of them as the result, are the frames of a job without a relay, bit by bit."""
    given: list[torch.Tensor] = []
    relay = Relay(lambda block: given.append(block.clone()), SMALL)
    last = through(vae, latent(4), RunOptions(plan, relay=relay), output).tensor
    whole = through(vae, latent(4), RunOptions(plan), output).tensor
    whole = whole[0].transpose(0, 1) if output is Output.RAW else whole
    assert torch.equal(torch.cat([*given, last]), whole)
    assert [len(block) for block in given] == [1] * 12


def test_a_group_is_a_block(vae: DiffusersVAE) -> None:
    """Frames that are finished together are handed over together, if a block may be so large."""
    given: list[int] = []
    last = through(vae, latent(4), RunOptions("frames", relay=Relay(lambda block: given.append(len(block)), ALL)))
    assert (given, len(last.tensor)) == ([1, 4, 4], 4)


def test_what_is_held(vae: DiffusersVAE) -> None:
    """A clip that is handed over takes the memory of its network and of few frames, and its prediction says so."""
    whole = 13 * 4 * 64 * 64 * 3 * 4  # bytes of the raw frames, roughly

    def peak(**options: Any) -> tuple[int, int]:
        with LiveBytes() as live:
            found = through(vae, latent(13, 8), RunOptions("frames", budget=lambda: ALL, **options), Output.RAW)
        return live.peak, found.peak_bytes

    held, predicted = peak(relay=Relay(lambda block: None, SMALL))
    held_without, predicted_without = peak()
    assert predicted_without - predicted > whole // 2
    assert held_without - held > whole // 3
    assert held <= predicted

    budget = (predicted + predicted_without) // 2
    terms = RunOptions("frames", budget=lambda: budget, relay=Relay(lambda block: None, SMALL))
    through(vae, latent(13, 8), terms, Output.RAW)
    with pytest.raises(TooLarge):
        through(vae, latent(13, 8), RunOptions("frames", budget=lambda: budget), Output.RAW)


@pytest.mark.parametrize("most_bytes", [SMALL, ALL])
@pytest.mark.parametrize("given", [0, 1, 5])
def test_a_job_begins_again(vae: DiffusersVAE, given: int, most_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """If memory runs out, a smaller plan goes on: every frame is handed over once, and in order."""
    ran: list[str] = []
    run = Blocks.run

    def poor(self: Blocks, z: torch.Tensor, sink: Any, *rest: Any) -> None:
        def put(first: int, row: int, block: torch.Tensor) -> None:
            if len(ran) == 1 and first >= given:
                raise torch.OutOfMemoryError("none left")
            sink(first, row, block)

        ran.append(self.name)
        run(self, z, put, *rest)

    monkeypatch.setattr(Blocks, "run", poor)
    blocks: list[tuple[int, torch.Tensor]] = []
    relay = Relay(lambda block: blocks.append((relay.given, block.clone())), most_bytes)
    found = through(vae, latent(3, 16), RunOptions(budget=lambda: ALL, relay=relay), Output.RAW)
    assert len(ran) == 2
    parts = [block for _, block in blocks] + [found.tensor]
    assert [first for first, _ in blocks] + [found.first] == [sum(map(len, parts[:at])) for at in range(len(parts))]
    whole = through(vae, latent(3, 16), RunOptions("whole"), Output.RAW).tensor[0].transpose(0, 1)
    assert float((torch.cat(parts) - whole).abs().max() / whole.abs().max()) < 1e-5


@pytest.mark.parametrize(("most", "blocks"), [(1, [1] * 5), (2, [2, 1, 2]), (6, [3])])
def test_frames_of_a_second_run(most: int, blocks: list[int]) -> None:
    """Those that the first run gave are dropped, however many are finished together."""
    clip = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 4, 4)
    given: list[torch.Tensor] = []
    relay = Relay(given.append, most * clip[0].numel() * 4)
    for frames in (3, 6):
        canvas = RelayCanvas(6, 4, torch.clone, row_axis=2, relay=relay)
        canvas.put(0, 0, clip[:frames])
    assert torch.equal(torch.cat([*given, canvas.output]), clip)
    assert [len(block) for block in given] == blocks


@pytest.mark.parametrize("given", [0, 1])
def test_float32_only_before_the_first_frame(given: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that are not finite in 16 bits are redone in float32 only while no frame has been handed over."""
    half = DiffusersVAE(wan().half(), source="seeded", revision="", family=family_of(MODELS["wan2.1"]))
    run = Blocks.run

    def overflowing(self: Blocks, z: torch.Tensor, sink: Any, *rest: Any) -> None:
        if z.dtype is torch.float32:
            run(self, z, sink, *rest)
            return
        for number in range(given):
            sink(number, 0, torch.zeros(1, 3, 16, 16).half())
        sink(given, 0, torch.full((1, 3, 16, 16), torch.inf).half())

    monkeypatch.setattr(Blocks, "run", overflowing)
    blocks: list[torch.Tensor] = []
    options = RunOptions("frames", relay=Relay(blocks.append, SMALL))
    if given:
        with pytest.raises(NonFiniteOutput):
            through(half, latent(3), options)
        assert len(blocks) == given
    else:
        assert "float32" in through(half, latent(3), options).note


def test_a_job_that_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frames are redone in float32 after the first one too, and come again from the first one."""
    half = DiffusersVAE(wan().half(), source="seeded", revision="", family=family_of(MODELS["wan2.1"]))
    whole = through(half, latent(3), RunOptions("frames"), Output.RAW).tensor
    run, blocks = Blocks.run, list[tuple[int, torch.Tensor]]()

    def overflowing(self: Blocks, z: torch.Tensor, sink: Any, *rest: Any) -> None:
        if z.dtype is torch.float16:
            sink(0, 0, torch.zeros(1, 3, 16, 16).half())
            sink(1, 0, torch.full((1, 3, 16, 16), torch.inf).half())
        run(self, z, sink, *rest)

    monkeypatch.setattr(Blocks, "run", overflowing)
    relay = Relay(lambda block: blocks.append((relay.given, block.clone())), SMALL, restarts=True)
    found = through(half, latent(3), RunOptions("frames", relay=relay), Output.RAW)
    assert "float32" in found.note
    assert [first for first, _ in blocks] == [0, *range(8)]
    assert found.first == 8
    frames = torch.cat([*[block for _, block in blocks[1:]], found.tensor])
    assert torch.allclose(frames.float(), whole[0].transpose(0, 1).float(), atol=0.05)
