"""What the tests of local networks share: how one runs, what diffusers gives, and faults that a comparison must see."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from remote_vae.core import blocks, stream_frames, stream_layer, stream_whole, time_attention
from remote_vae.core.block import Past
from remote_vae.core.blocks import Blocks, Maps
from remote_vae.core.executor import NO_ARGUMENTS, Arguments
from remote_vae.core.kept import Kept
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.local import Near
from remote_vae.core.norm import ChannelMoments
from remote_vae.core.own_code import meta_copy
from remote_vae.core.stream_layer import Convolved, Held
from remote_vae.core.stream_scaled import Scales
from remote_vae.models.stages import hunyuan_video_15, kvae_video, local_parts, vidtok

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


def off(way: Blocks, given: torch.Tensor, arguments: Arguments = NO_ARGUMENTS) -> float:
    """By how much a prediction differs from the live bytes of a run, relative to these; nothing stays alive."""
    with torch.inference_mode(), LiveBytes() as live:
        way.run(given.clone(), lambda first, row, block: None, lambda: None, arguments)
    assert live.current == 0
    return way.peak_bytes(tuple(given.shape), given.dtype, 0) / live.peak - 1


def lost_decibels(ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor) -> float:
    """How much more our rounding differs from what is exact than theirs does."""
    noise, least = ((found.float() - exact).square().mean() for found in (ours, theirs))
    return float(10 * torch.log10(noise / least))


# --- faults that a comparison must see ---


def drops_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Past.begin

    def forgetful(self: Past, moment: Any) -> Any:
        before, keep = begin(self, moment)
        return deque(map(torch.zeros_like, before)), keep

    monkeypatch.setattr(Past, "begin", forgetful)


def forgets_the_row_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stride reads no row above those that it makes."""
    honest = local_parts.strided_of

    def forgetful(conv: Any) -> Near:
        near = honest(conv)
        return replace(near, function=lambda window, top, bottom: near.function(window[:, :, 1 - top :], 1, bottom))

    monkeypatch.setattr(local_parts, "strided_of", forgetful)


def forgets_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Convolved._window

    def forgetful(self: Convolved, piece: Any, held: Held, *rest: Any) -> Any:
        zeros = [*map(torch.zeros_like, held)] if isinstance(held, list) else held
        return honest(self, piece, torch.zeros_like(zeros) if isinstance(zeros, torch.Tensor) else zeros, *rest)

    monkeypatch.setattr(Convolved, "_window", forgetful)


def knows_the_first_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChannelMoments, "merge", lambda self, other: self)


def reads_zeros_beyond_the_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_layer, "_repeat", lambda *window, **borders: None)


def reads_zeros_before_the_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = hunyuan_video_15.Frames
    monkeypatch.setattr(hunyuan_video_15, "Frames", lambda before, repeats: frames(before))


def attends_to_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_whole, "_joined", lambda before, now: now)


def repeats_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(rows: torch.Tensor, new: bool) -> torch.Tensor:
        return torch.cat([rows[:1], rows[1:].repeat_interleave(2, 0)])

    monkeypatch.setattr(vidtok, "_interpolated", twice)


def forgets_the_frame_before_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = stream_frames.ThreeOfFrames._of
    monkeypatch.setattr(stream_frames.ThreeOfFrames, "_of", lambda self, taps: honest(self, [taps[1], *taps[1:]]))


def sees_frames_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_whole.NormedFrames, "_apart", lambda self, rows: (rows,))


def sees_each_frame_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_whole.NormedFrames, "_apart", lambda self, rows: torch.split(rows, 1))


def scales_by_the_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Scales.scale
    monkeypatch.setattr(Scales, "scale", lambda self, rows, first: honest(self, rows, 0))


def begins_with_one_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs together is not what the class runs together, so that norms see other frames."""
    honest = kvae_video.Local
    monkeypatch.setattr(kvae_video, "Local", lambda *given, first, **others: honest(*given, first=1, **others))


def repeats_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of convolutions that mirror them."""
    honest = functional.pad

    def repeated(given: torch.Tensor, sides: tuple[int, ...], mode: str = "constant", value: Any = None) -> Any:
        return honest(given, sides, mode="replicate" if mode == "reflect" else mode, value=value)

    monkeypatch.setattr(functional, "pad", repeated)


def attends_to_the_last_part_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in time does not see the parts of a clip that came before."""
    honest = time_attention.attend_in_time
    monkeypatch.setattr(blocks, "attend_in_time", lambda parts, *rest: [honest([part], *rest) for part in parts])


def normalises_by_the_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = time_attention._attended
    monkeypatch.setattr(
        time_attention,
        "_attended",
        lambda given, stage, scale, shift: honest(given, stage, scale[:1].expand_as(scale), shift[:1].expand_as(shift)),
    )


def forgets_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Maps, "attend", lambda self, attention, run: None)
