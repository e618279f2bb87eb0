"""A tiny model of every family that runs in strips or blocks, and its ways to run, with blocks of a few rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo15, AutoencoderTiny

from numerics.cases import CASES
from remote_vae.core.blocks import Blocks
from remote_vae.core.canvas import Canvas
from remote_vae.core.executor import RECOMPUTE, WHOLE, Executor
from remote_vae.core.pixels import pictures_of
from remote_vae.core.strips import Strips
from remote_vae.core.sweep import MapSize, StripPlan
from remote_vae.models.families import FAMILIES, MODELS, family_of
from remote_vae.models.vae import DiffusersVAE

from .models import shaken

# Of a class of several kinds, those whose layers differ.
KINDS = ("wan2.2-5b", "ltx-0.9.1", "ltx-0.9.5", "ltx2.3", "taew2.2-super", "dc-ae-f32c32-in", "ldm-super-resolution")
SMALLER: dict[str, Callable[[], Any]] = {
    "taesd": lambda: AutoencoderTiny(encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4),
    "hunyuanvideo-1.5": lambda: AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1
    ),
}
BUILDS = {name: case.module for name, case in CASES.items()} | SMALLER


def _one_of_each_class() -> list[str]:
    classes = {family.cls: "" for family in FAMILIES if family.stages}
    for name in BUILDS:
        cls = family_of(MODELS[name]).cls
        classes[cls] = classes.get(cls, name) or name
    return [name for cls, name in classes.items() if family_of(MODELS[name]).stages]


CLASSES = (*_one_of_each_class(),)
NAMES = (*CLASSES, *KINDS)
FRAMES = 3  # of a latent
MORE_FRAMES = {"cogvideox": 5, "kvae-3d": 7}  # whose first three and five run together


def served(name: str, dtype: torch.dtype = torch.float32) -> DiffusersVAE:
    torch.manual_seed(5)
    module, family = shaken(BUILDS[name]()), family_of(MODELS[name])
    family.prepare(module)
    return DiffusersVAE(torch.nn.Module.to(module, dtype), source="seeded", revision="", family=family)


def frames_of(name: str) -> int:
    """How many frames a latent has; 0 if the model takes pictures."""
    recipe = MODELS[name].recipe
    return 1 if recipe.one_frame else MORE_FRAMES.get(name, FRAMES) if recipe.has_frames else 0


def given_to(
    vae: DiffusersVAE, name: str, *, decoding: bool, height: int = 3, width: int = 2, frames: int | None = None
) -> torch.Tensor:
    """What the decoder or the encoder takes. *Units*: the sides and the frames are those of the latent."""
    frames, info = frames_of(name) if frames is None else frames, vae.info
    if decoding:
        return torch.randn(1, info.latent_channels, *([frames] if frames else []), height, width)
    sides = (info.spatial_compression_ratio * height, info.spatial_compression_ratio * width)
    return torch.rand(1, info.pixel_channels, *([info.frames.of_latent(frames)] if frames else []), *sides) * 2 - 1


def own(vae: DiffusersVAE, given: torch.Tensor, *, decoding: bool) -> torch.Tensor:
    """What the model's own code gives, as pictures."""
    with torch.inference_mode():
        return pictures_of(vae.decode(given) if decoding else vae.encode(given))


def ways_of(vae: DiffusersVAE, *, decoding: bool, block_bytes: int) -> dict[str, Executor]:
    """Strips and blocks by their names, of a few rows each."""
    found: dict[str, Executor] = {}
    for way in vae.decoders if decoding else vae.encoders:
        if isinstance(way, Blocks):
            found[way.name] = replace(way, block_bytes=block_bytes)
        elif isinstance(way, Strips) and way.name != WHOLE:
            found[way.name] = _Small(way.name, way.program, way.device, strip_bytes=block_bytes)
    return found


@dataclass(frozen=True, slots=True)
class _Small(Strips):
    strip_bytes: int = 1

    def plan(self, image: MapSize) -> StripPlan:
        return StripPlan(self.strip_bytes, self.name == RECOMPUTE)


def through(
    way: Executor,
    given: torch.Tensor,
    like: torch.Tensor,
    checkpoint: Callable[[], None] = lambda: None,
    beside: Callable[[int], None] = lambda rows: None,
) -> torch.Tensor:
    """The output of a run; `beside` is called with the rows of all frames that are finished, after each block."""
    canvas, done = Canvas(len(like), like.shape[2], lambda block: block, row_axis=2), 0

    def sink(first: int, row: int, block: torch.Tensor) -> None:
        nonlocal done
        canvas.put(first, row, block)
        done += len(block) * block.shape[2]
        beside(done)

    with torch.inference_mode():
        way.run(given, sink, checkpoint)
    assert canvas.output.shape == like.shape
    return canvas.output


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference as a share of the scale."""
    return float((found - expected).abs().max() / expected.abs().max())
