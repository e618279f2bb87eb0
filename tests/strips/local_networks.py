"""What the tests of local networks share: how one runs, what diffusers gives, and faults that a comparison must see."""

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch

from remote_vae.core.block import Past
from remote_vae.core.blocks import Blocks
from remote_vae.core.kept import Kept
from remote_vae.core.norm import ChannelMoments
from remote_vae.core.own_code import meta_copy
from remote_vae.core.stream_layer import Convolved

CPU = torch.device("cpu")


def ways_of(describe: Callable[[Any], Any], module: Any, order: str, block_bytes: int) -> tuple[Blocks, ...]:
    """One for each described network. Frames that depend on later ones are always run together."""
    found, meta = describe(module), describe(meta_copy(module))
    assert found is not None
    assert meta is not None
    return tuple(
        Blocks(order, order == "rows" or program.only_rows, program, lambda told=told: told, CPU, block_bytes, Kept())
        for program, told in zip(found, meta, strict=True)
    )


def decoded(module: Any, z: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        pixels: torch.Tensor = module.decode(z).sample
    return pixels


def encoded(module: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        parameters: torch.Tensor = module.encode(x).latent_dist.parameters
    return parameters


def drops_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Past.begin

    def forgetful(self: Past, moment: Any) -> Any:
        before, keep = begin(self, moment)
        return deque(map(torch.zeros_like, before)), keep

    monkeypatch.setattr(Past, "begin", forgetful)


def forgets_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Convolved._window

    def forgetful(self: Convolved, piece: Any, held: torch.Tensor | None, *rest: Any) -> Any:
        return honest(self, piece, None if held is None else torch.zeros_like(held), *rest)

    monkeypatch.setattr(Convolved, "_window", forgetful)


def knows_the_first_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChannelMoments, "merge", lambda self, other: self)
