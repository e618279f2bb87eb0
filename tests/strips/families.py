"""Families of videos, as rows: what the tests of all of them need to know of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch

from remote_vae.core.blocks import Blocks
from remote_vae.models.families import kandinsky6_sr as kandinsky6_sr_family
from remote_vae.models.families import vidtok as vidtok_family
from remote_vae.models.stages import (
    cogvideox,
    cosmos,
    easyanimate,
    hunyuan_video_15,
    kandinsky6_sr,
    kvae_video,
    mochi,
    vidtok,
)

from . import local_networks as faults
from .local_networks import decoded, encoded, ways_of
from .models import shaken

Plant = Callable[[pytest.MonkeyPatch], None]
Run = Callable[[Any, torch.Tensor], torch.Tensor]
DECODE, ENCODE = 0, 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """A row. What there is of both directions comes in their order: to decode, to encode.

    `tiny` and `wide` are configs of a module: for comparisons, and for predictions, where maps must be larger than all
    else. `clips` are latent frames and batches, `smallest` rows and columns; `predicted` are latent frames, rows and
    columns; `channels` are the latent's, and `ratio` is the number of pixels to a side of its cells. `frames` gives the
    frames to encode for so many latent frames. `plans` are the names of ways to run, the preferred one first. `own` is
    the name of the model's own code, beside which the plan `saves` holds less than these `shares` for clips of the
    shapes `true`. A fault that is planted, with so many latent frames, must be `seen` as so many times the difference
    that is allowed.
    """

    model: str
    cls: type[torch.nn.Module]
    stages: ModuleType
    tiny: Mapping[str, Any]
    wide: Mapping[str, Any]
    channels: int
    frames: Callable[[int], int]
    plans: tuple[tuple[str, ...], tuple[str, ...]]
    true: tuple[tuple[int, ...], tuple[int, ...]]
    shares: tuple[float, float]
    plants: tuple[tuple[int, Plant], ...]
    orders: tuple[str, ...] = ("frames",)
    own: str = "whole"
    saves: str = "frames"
    clips: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (3, 2), (4, 1), (9, 1))
    predicted: tuple[tuple[int, int, int], ...] = ((1, 6, 4), (2, 6, 4), (3, 6, 4), (7, 6, 4))
    smallest: tuple[tuple[int, int], ...] = ((1, 1), (1, 5), (9, 1))
    runs: tuple[Run, Run] = (decoded, encoded)
    ratio: int = 8
    planted: int = 3
    seen: tuple[float, float] = (100, 100)

    def made(self, **config: Any) -> Any:
        torch.manual_seed(0)
        return shaken(self.cls(**{**self.tiny, **config}))

    def ways(self, module: Any, block_bytes: int, order: str = "frames") -> tuple[Blocks, ...]:
        """The decoder and the encoder."""
        return ways_of(self.stages.describe, module, order, block_bytes)

    def latent(self, frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
        return torch.randn(batch, self.channels, frames, height, width)

    def pixels(self, frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
        """What becomes so many latent frames."""
        return torch.rand(batch, 3, self.frames(frames), self.ratio * height, self.ratio * width) * 2 - 1

    def both(self, frames: int, height: int = 3, width: int = 2, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        return self.latent(frames, height, width, batch), self.pixels(frames, height, width, batch)


COSMOS = Family(
    model="cosmos",
    cls=diffusers.AutoencoderKLCosmos,
    stages=cosmos,
    tiny={
        "encoder_block_out_channels": (16, 32, 16, 16),
        "decode_block_out_channels": (16, 16, 32, 16),
        "num_layers": 1,
    },
    wide={"encoder_block_out_channels": (64, 128, 64, 64), "decode_block_out_channels": (64, 64, 128, 64)},
    channels=16,
    frames=lambda latents: 8 * latents - 7,
    plans=(("whole", "frames"),) * 2,
    true=((1, 16, 16, 22, 40), (1, 3, 121, 176, 320)),
    shares=(0.3, 0.3),
    predicted=((1, 12, 16), (2, 12, 16), (6, 12, 16)),  # the map that waits for attention grows
    planted=6,
    seen=(100, 10),
    plants=tuple(
        (direction, plant)
        for direction in (DECODE, ENCODE)
        for plant in (
            faults.drops_frames,
            faults.forgets_rows,
            faults.knows_the_first_block_only,
            faults.attends_to_the_last_part_only,
            faults.forgets_attention,
        )
    ),
)

VIDTOK = Family(
    model="vidtok",
    cls=diffusers.AutoencoderVidTok,
    stages=vidtok,
    tiny={"ch": 8, "ch_mult": [1, 2, 2, 2], "num_res_blocks": 1},
    wide={"ch": 32},
    channels=4,
    frames=lambda latents: 4 * latents - 3,
    plans=(("whole", "rows"), ("frames", "rows", "whole")),
    orders=("frames", "rows"),
    saves="rows",
    true=((1, 4, 5, 24, 24), (1, 3, 17, 192, 192)),
    shares=(0.2, 0.2),
    predicted=((5, 4, 6), (3, 8, 12)),
    plants=((DECODE, faults.repeats_frames), (DECODE, faults.forgets_rows), (ENCODE, faults.drops_frames)),
    runs=(vidtok_family.decode, vidtok_family.encode),
)

EASYANIMATE = Family(
    model="easyanimate",
    cls=diffusers.AutoencoderKLMagvit,
    stages=easyanimate,
    tiny={"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2},
    wide={"block_out_channels": (16, 32, 32, 64)},
    channels=16,
    frames=lambda latents: 4 * latents - 3,
    plans=(("frames", "pieces", "whole"),) * 2,
    own="pieces",
    true=((1, 16, 3, 48, 84), (1, 3, 9, 384, 672)),
    shares=(0.65, 0.65),
    plants=tuple(
        (ENCODE, plant)
        for plant in (
            faults.drops_frames,
            faults.forgets_rows,
            faults.knows_the_first_block_only,
            faults.sees_frames_together,
            faults.forgets_the_frame_before_a_pair,
        )
    ),
)

COGVIDEOX = Family(
    model="cogvideox",
    cls=diffusers.AutoencoderKLCogVideoX,
    stages=cogvideox,
    tiny={"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2},
    wide={"block_out_channels": (16, 32, 32, 64)},
    channels=16,
    frames=lambda latents: 4 * latents - 3 if latents % 2 else 4 * latents,
    plans=(("frames", "pieces", "whole"),) * 2,
    own="pieces",
    true=((1, 16, 5, 30, 45), (1, 3, 17, 240, 360)),
    shares=(0.33, 0.6),
    clips=((1, 2), (2, 1), (3, 2), (4, 1), (5, 1), (9, 1)),
    predicted=tuple((frames, 6, 4) for frames in (1, 2, 3, 7, 9)),
    planted=5,  # the first ones run together
    plants=tuple(
        (DECODE, plant)
        for plant in (
            faults.drops_frames,
            faults.forgets_rows,
            faults.knows_the_first_block_only,
            faults.sees_each_frame_alone,
            faults.scales_by_the_first_rows,
        )
    ),
)

MOCHI = Family(
    model="mochi",
    cls=diffusers.AutoencoderKLMochi,
    stages=mochi,
    tiny={
        "encoder_block_out_channels": (32, 64, 64, 64),  # groups of one channel and one cell have no variance
        "decoder_block_out_channels": (32, 32, 64, 64),
        "layers_per_block": (1,) * 5,
    },
    wide={"encoder_block_out_channels": (64,) * 4, "decoder_block_out_channels": (32, 64, 64, 128)},
    channels=12,
    frames=lambda latents: 6 * latents - 5,
    plans=(("frames", "whole"),) * 2,
    true=((1, 12, 11, 30, 54), (1, 3, 61, 240, 432)),
    shares=(0.2, 0.2),
    clips=((1, 2), (2, 1), (3, 2), (4, 1)),
    predicted=((1, 9, 5), (2, 9, 5), (3, 9, 5), (6, 9, 5)),
    plants=(
        *(
            (direction, plant)
            for direction in (DECODE, ENCODE)
            for plant in (
                faults.drops_frames,
                faults.reads_zeros_beyond_the_borders,
                faults.knows_the_first_block_only,
            )
        ),
        (ENCODE, faults.attends_to_the_last_part_only),
        (ENCODE, faults.normalises_by_the_first_frame),
        (ENCODE, faults.forgets_attention),
    ),
)

KVAE = Family(
    model="kvae-3d",
    cls=diffusers.AutoencoderKLKVAEVideo,
    stages=kvae_video,
    tiny={"ch": 32, "ch_mult": (1, 1, 1, 2), "num_res_blocks": 1},  # its norms have 32 groups
    wide={"ch_mult": (1, 2, 2, 2)},
    channels=16,
    frames=lambda latents: 4 * latents - 3,
    plans=(("pieces", "whole", "frames"),) * 2,
    own="pieces",
    true=((1, 16, 5, 30, 40), (1, 3, 17, 240, 320)),
    shares=(0.45, 0.45),
    clips=((1, 2), (2, 1), (6, 2), (8, 1), (9, 1)),  # a last segment of one frame, of three, and a whole one
    predicted=((1, 4, 6), (4, 4, 6), (13, 4, 6)),
    smallest=((1, 2), (1, 5), (9, 1)),  # groups of one channel and one cell have no variance
    planted=6,
    plants=(
        *(
            (direction, plant)
            for direction in (DECODE, ENCODE)
            for plant in (
                faults.drops_frames,
                faults.forgets_rows,
                faults.knows_the_first_block_only,
                faults.sees_each_frame_alone,
                faults.begins_with_one_frame,
            )
        ),
        (DECODE, faults.scales_by_the_first_rows),
        (ENCODE, faults.repeats_edges),
        (ENCODE, faults.forgets_the_frame_before_a_pair),
    ),
)

KANDINSKY6_SR = Family(
    model="kandinsky6-sr",
    cls=diffusers.Kandinsky6SRVAE,
    stages=kandinsky6_sr,
    tiny={
        "encoder_block_out_channels": (4, 8, 8, 8, 16),
        "decoder_block_out_channels": (4, 8, 8, 8, 16),
        "layers_per_block": 1,
        "latent_channels": 8,
    },
    wide={
        "encoder_block_out_channels": (16, 32, 32, 32, 64),
        "decoder_block_out_channels": (16, 32, 32, 32, 64),
    },
    channels=8,
    ratio=16,
    frames=lambda latents: 4 * latents - 3,
    plans=(("whole", "frames", "rows"),) * 2,
    orders=("frames", "rows"),
    true=((1, 64, 9, 20, 20), (1, 3, 33, 320, 320)),
    shares=(0.33, 0.33),
    predicted=((5, 4, 6), (3, 6, 8)),
    plants=(
        *((direction, plant) for direction in (DECODE, ENCODE) for plant in (faults.drops_frames, faults.forgets_rows)),
        (DECODE, faults.scales_by_the_first_rows),
        (ENCODE, faults.forgets_the_frame_before_a_pair),
    ),
    runs=(kandinsky6_sr_family.decode, kandinsky6_sr_family.encode),
)


def one_by_one(run: Run) -> Run:
    """Because diffusers' mask does not fit a batch."""
    return lambda module, batch: torch.cat([run(module, one) for one in batch.split(1)])


HUNYUANVIDEO_15 = Family(
    model="hunyuanvideo-1.5",
    cls=diffusers.AutoencoderKLHunyuanVideo15,
    stages=hunyuan_video_15,
    tiny={"latent_channels": 8, "block_out_channels": (16, 16, 32, 32, 32), "layers_per_block": 1},
    wide={"block_out_channels": (16, 32, 64, 64, 64)},
    channels=8,
    ratio=16,
    frames=lambda latents: 4 * latents - 3,
    plans=(("frames", "rows", "whole"),) * 2,
    orders=("frames", "rows"),
    saves="rows",
    true=((1, 32, 5, 16, 24), (1, 3, 17, 256, 384)),
    shares=(0.25, 0.25),
    clips=((1, 2), (2, 1), (3, 1), (4, 2)),
    predicted=((1, 6, 4), (3, 6, 4), (6, 6, 4)),
    plants=tuple(
        (DECODE, plant)
        for plant in (
            faults.drops_frames,
            faults.reads_zeros_beyond_the_borders,
            faults.reads_zeros_before_the_first_frame,
            faults.attends_to_one_frame,
        )
    ),
    runs=(one_by_one(decoded), one_by_one(encoded)),
)

FAMILIES = (COSMOS, VIDTOK, EASYANIMATE, COGVIDEOX, MOCHI, HUNYUANVIDEO_15, KVAE, KANDINSKY6_SR)
