"""A prediction for a large clip is as good as for a small one, and takes no more operators."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan
from torch.utils._python_dispatch import TorchDispatchMode

from remote_vae.core import blocks
from remote_vae.models.stages import causal, cogvideox

from .local_networks import off, ways_of
from .models import shaken

CLIPS = ((1, 16, 3, 18, 24), (1, 3, 9, 144, 192))  # to decode and to encode
FEW = 2**15  # bytes of a block, so that there are many
MOST = 160_000  # operators of a prediction
NETWORKS = [(causal, "frames"), (causal, "rows"), (cogvideox, "frames")]


class Operators(TorchDispatchMode):
    """Counts the operators of this thread."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def network(stages: Any, order: str, block_bytes: int = FEW) -> tuple[blocks.Blocks, ...]:
    """The decoder and the encoder."""
    torch.manual_seed(0)
    module = (
        AutoencoderKLWan(base_dim=16, num_res_blocks=1, dim_mult=[1, 2, 2, 2])
        if stages is causal
        else AutoencoderKLCogVideoX(block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_num_groups=2)
    )
    return ways_of(stages.describe, shaken(module), order, block_bytes)


@pytest.mark.parametrize(("stages", "order"), NETWORKS)
def test_as_good_as_for_a_small_clip(stages: Any, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 15 % of the live bytes, both ways, of a clip that does not run as a whole to be predicted."""
    rehearsed: list[tuple[int, ...]] = []
    whole = blocks.Blocks._rehearsed

    def noted(self: blocks.Blocks, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        rehearsed.append(shape)
        return whole(self, shape, dtype)

    monkeypatch.setattr(blocks.Blocks, "_rehearsed", noted)
    for way, shape in zip(network(stages, order), CLIPS, strict=True):
        rehearsed.clear()
        assert abs(off(way, torch.zeros(shape))) < 0.15
        assert order == "rows" or shape not in rehearsed


def test_planted_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """These clips show a prediction that leaves out how memory grows with the area."""
    monkeypatch.setattr(blocks.Blocks, "_sized", lambda way, shape, dtype: way._rehearsed((*shape[:-2], 8, 8), dtype))
    assert off(network(causal, "frames")[0], torch.zeros(CLIPS[0])) < -0.15


@pytest.mark.parametrize(("stages", "order"), NETWORKS)
def test_few_operators(stages: Any, order: str) -> None:
    """A prediction runs a bounded number of operators, however long or large the clip is, both ways."""
    decoder, encoder = network(stages, order, 2**20)
    clips = ((1, 16, 9, 56, 56), (1, 16, 73, 56, 56), (1, 16, 9, 160, 240))
    for way, shapes in ((decoder, clips), (encoder, [(1, 3, 4 * f - 3, 8 * h, 8 * w) for _, _, f, h, w in clips])):
        counts = []
        for shape in shapes:
            with Operators() as seen:
                way.peak_bytes(shape, torch.float32, 0)
            counts.append(seen.count)
        assert max(counts) < MOST, counts
