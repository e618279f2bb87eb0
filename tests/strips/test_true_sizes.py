"""Predictions at true widths: on the meta device nothing is computed, but all is counted."""

from dataclasses import replace
from importlib import import_module
from math import prod
from typing import Any

import pytest
import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTX2Video,
    AutoencoderKLWan,
)

from remote_vae.core.blocks import BLOCK_BYTES, Blocks, block_executors
from remote_vae.core.kept import Kept
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.strips import strip_executors
from remote_vae.models.families import MODELS, family_of, find_model
from remote_vae.models.stages import autoencoder_kl as autoencoder_kl_stages
from remote_vae.models.stages import causal, ltx
from remote_vae.models.stages import hunyuan_image as hunyuan_image_stages
from remote_vae.models.stages import hunyuan_video as hunyuan_video_stages
from remote_vae.models.vae import DiffusersVAE

from .local_networks import ways_of
from .test_exact import cast

LTX2_BY_DIFFUSERS = 837_000_000, 780_000_000  # the same of LTX-2's decode and encode of 49 frames of 256x384
WAN_BY_DIFFUSERS = 1_965_000_000  # live bytes of its decode of 17 frames of 240x416, by `benchmarks/exact.py`

MODULES: dict[str, tuple[type, Any, tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]] = {
    "hunyuanvideo": (
        AutoencoderKLHunyuanVideo, hunyuan_video_stages,
        ((1, 16, 5, 20, 32), (1, 16, 3, 30, 16)), ((1, 3, 17, 160, 256), (1, 3, 9, 240, 128)),
    ),
    "asymmetric": (
        AsymmetricAutoencoderKL, autoencoder_kl_stages,
        ((1, 4, 64, 64),), ((1, 3, 512, 512),),
    ),
    "hunyuan-image-2.1": (
        AutoencoderKLHunyuanImage, hunyuan_image_stages,
        ((1, 64, 16, 16), (1, 64, 32, 24)), ((1, 3, 512, 512), (1, 3, 1024, 768)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODULES)
def test_prediction(name: str, dtype: torch.dtype) -> None:
    """With the true architecture, every predicted peak is within 15 % of what is counted, in both directions."""
    kind, stages, latents, pixels = MODULES[name]
    row = find_model(name)
    assert row is not None
    with torch.device("meta"):
        model = cast(kind(**(row.config or {})).eval().requires_grad_(False), dtype)
    for program, shapes in ((stages.describe_decoder(model), latents), (stages.describe_encoder(model), pixels)):
        for shape in shapes:
            for executor in strip_executors(program, "cuda", 1):
                given = torch.empty(shape, dtype=dtype, device="meta")
                with LiveBytes() as live:
                    executor.run(given.clone(), lambda *block: None, lambda: None)
                assert abs(executor.peak_bytes(shape, dtype, 0) / live.peak - 1) < 0.15


LOCAL: dict[str, tuple[tuple[int, ...], ...]] = {  # what is decoded, and what is encoded if blocks do that
    "cogvideox": ((1, 16, 3, 6, 4), (1, 3, 17, 48, 32)),
    "cosmos": ((1, 16, 4, 6, 4), (1, 3, 25, 48, 32)),
    "easyanimate": ((1, 16, 4, 6, 4), (1, 3, 13, 48, 32)),
    "hunyuanvideo-1.5": ((1, 32, 4, 6, 4), (1, 3, 9, 96, 64)),
    "ltx-0.9.5": ((1, 128, 4, 6, 4), (1, 3, 17, 96, 64)),
    "ltx2": ((1, 128, 4, 6, 4), (1, 3, 17, 96, 64)),
    "mochi": ((1, 12, 4, 6, 4), (1, 3, 13, 48, 32)),
    "qwen-image-2.1": ((1, 64, 1, 6, 4), (1, 4, 1, 96, 64)),
    "sana": ((1, 32, 6, 4), (1, 3, 192, 128)),
    "svd": ((1, 4, 4, 6, 4),),
    "taew2.1": ((1, 16, 6, 6, 4), (1, 3, 24, 48, 32)),
    "vidtok": ((1, 4, 3, 6, 4), (1, 3, 5, 48, 32)),
    "wan2.1": ((1, 16, 4, 6, 4), (1, 3, 13, 48, 32)),
    "wan2.2-5b": ((1, 48, 4, 6, 4), (1, 3, 13, 96, 64)),
}


@pytest.mark.parametrize(("name", "direction"), [(name, way) for name in LOCAL for way in range(len(LOCAL[name]))])
def test_prediction_of_blocks(name: str, direction: int) -> None:
    """With the true architecture, a run by blocks takes what is predicted within 15 %, both ways and in every order."""
    family, shape = family_of(MODELS[name]), LOCAL[name][direction]
    with torch.device("meta"):
        model = family.load_class()(**(MODELS[name].config or {})).eval().requires_grad_(False)
    program = import_module(f"remote_vae.models.stages.{family.stages}").describe(model)[direction]
    found = block_executors(program, lambda: program, torch.device("cpu"), Kept())
    for way in {each.name: replace(each, block_bytes=2**20) for each in found}.values():
        given = torch.empty(shape, device="meta")
        with torch.inference_mode(), LiveBytes() as live:
            way.run(given.clone(), lambda *block: None, lambda: None)
        assert abs(way.peak_bytes(shape, torch.float32, 0) / live.peak - 1) < 0.15, way


def test_frames_of_a_long_clip() -> None:
    """The prediction for a few frames holds for a clip of any length, and is less than half of what diffusers holds.

    For that, small maps are kept and not those that an upsampling makes of them, and each block makes its kernels.
    """
    with torch.device("meta"):
        model = AutoencoderKLWan().eval().requires_grad_(False)
    way = ways_of(causal.describe, model, "frames", BLOCK_BYTES["cpu"])[0]
    shape = (1, 16, 7, 30, 52)
    predicted = way.peak_bytes(shape, torch.float32, 0)
    assert abs(predicted / way._rehearsed(shape, torch.float32) - 1) < 0.02
    assert predicted < 0.49 * WAN_BY_DIFFUSERS


@pytest.mark.parametrize("order", ["frames", "rows"])
def test_few_kernels_are_held(order: str) -> None:
    """Kernels of many layers are not held side by side: LTX-2 takes 0.4 of diffusers' memory, both ways."""
    row = find_model("ltx2")
    assert row is not None
    with torch.device("meta"):
        model = AutoencoderKLLTX2Video(**(row.config or {})).eval().requires_grad_(False)
    ways = ways_of(ltx.describe, model, order, BLOCK_BYTES["cpu"])
    for way, shape, own in zip(ways, ((1, 128, 7, 8, 12), (1, 3, 49, 256, 384)), LTX2_BY_DIFFUSERS, strict=True):
        assert way.peak_bytes(shape, torch.float32, 0) - 4 * prod(shape) < 0.4 * own


def test_rows_of_a_large_clip() -> None:
    """81 frames of 720x1280 of Wan 2.1 need at most 1.5 GB in bfloat16: waiting rows are kept once for both readers."""
    with torch.device("meta"):
        model = AutoencoderKLWan().eval().requires_grad_(False).to(torch.bfloat16)
    vae = DiffusersVAE(model, source="", revision="", family=family_of(MODELS["wan2.1"]))
    way = next(way for way in vae.decoders if isinstance(way, Blocks) and way.name == "rows" and way.lean)
    assert way.peak_bytes((1, 16, 21, 90, 160), torch.bfloat16, 0) <= 1_500_000_000
