"""In every family and every order, both ways, a comparison sees a frame, a row or a statistic that is forgotten."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from remote_vae.core import stream
from remote_vae.core.blocks import Blocks
from remote_vae.core.executor import Executor
from remote_vae.core.local import FrameNorm, Near, Sums, parts_of

from .every_family import NAMES, apart, frames_of, given_to, own, served, through, ways_of
from .local_networks import drops_frames, forgets_rows, knows_the_first_block_only
from .test_clips import forgets_a_frame, forgets_a_halo_row

CLOSE = 1e-5  # of the scale
# Of a few rows of all frames, what stands before their attention runs frame by frame.
KEEPS_FRAMES = ("wan2.1", "wan2.2-5b", "hunyuanvideo-1.5", "vidtok")

Plant = Callable[[pytest.MonkeyPatch], None]


def frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames before those that run are read as zeros, or not at all."""
    drops_frames(monkeypatch)
    forgets_a_frame(monkeypatch)


def row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row beside those that are computed is read as zeros."""
    forgets_rows(monkeypatch)
    forgets_a_halo_row(monkeypatch)
    honest = stream._Near.__init__

    def forgetful(self: Any, stage: Near, *rest: Any) -> None:
        def function(window: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
            above = stage.halo - top
            return stage.function(torch.cat([0 * window[:, :, :above], window[:, :, above:]], 2), top, bottom)

        honest(self, replace(stage, function=function), *rest)

    monkeypatch.setattr(stream._Near, "__init__", forgetful)


def statistic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first strip or block counts for a norm, or for the sums of linear attention."""
    knows_the_first_block_only(monkeypatch)
    honest = stream._Sums.__init__

    def forgetful(self: Any, stage: Sums, *rest: Any) -> None:
        seen: list[None] = []

        def summed(rows: torch.Tensor) -> torch.Tensor:
            seen.append(None)
            return stage.summed(rows) * (len(seen) == 1)

        honest(self, replace(stage, summed=summed), *rest)

    monkeypatch.setattr(stream._Sums, "__init__", forgetful)


def planted(name: str, way: Executor) -> list[Plant]:
    """The faults that a family can have in this way to run."""
    found = [row]
    if isinstance(way, Blocks):
        local = way.program
        kept = not way.together or name in KEEPS_FRAMES
        summed = any(isinstance(part, FrameNorm | Sums) for part in parts_of(local.stages))
    else:
        kept = summed = True
    return [*found, *([frame] if kept and frames_of(name) > 1 else []), *([statistic] if summed else [])]


@pytest.mark.parametrize("decoding", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_planted_error_is_seen(name: str, decoding: bool) -> None:
    """Runs of one row at a time give what the model's own code gives, and with a fault they clearly do not."""
    vae = served(name)
    given = given_to(vae, name, decoding=decoding, height=3 if frames_of(name) else 5)
    expected = own(vae, given, decoding=decoding)
    for way in ways_of(vae, decoding=decoding, block_bytes=1).values():
        assert apart(through(way, given, expected), expected) < CLOSE, way
        for plant in planted(name, way):
            with pytest.MonkeyPatch.context() as patch:
                plant(patch)
                assert apart(through(way, given, expected), expected) > 100 * CLOSE, (way, plant)
