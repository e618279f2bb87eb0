"""Clips in strips and windows of frames give the frames of the model's own code. The reference is diffusers' own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo

from remote_vae.core import clips, filters, rows
from remote_vae.core.canvas import Canvas
from remote_vae.core.clips import frames_of, run_windows
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.core.norm import ChannelMoments
from remote_vae.core.stages import Program
from remote_vae.core.strips import Strips, run, strip_executors
from remote_vae.core.sweep import MapSize, RowSink, StripPlan, map_sizes
from remote_vae.models.stages import hunyuan_video as stages_of_hunyuan
from remote_vae.models.stages.hunyuan_video import describe_decoder, describe_encoder

from .models import shaken
from .test_exact import CLOSE, apart, cast

FEW_ROWS = 20_000  # bytes of a strip of all frames
PLANS = {
    "one row": StripPlan(1),
    "one row, again, three at a time": StripPlan(1, recompute=True, workers=3),
    "few rows, two at a time": StripPlan(FEW_ROWS, workers=2),
    "few rows, again": StripPlan(FEW_ROWS, recompute=True),
    "whole": StripPlan(2**40),
}


def hunyuan_video(widths: tuple[int, ...] = (16, 32, 32, 32), layers: int = 1, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = AutoencoderKLHunyuanVideo(
        block_out_channels=widths, layers_per_block=layers, norm_num_groups=8, latent_channels=4
    )
    return shaken(model)


@pytest.fixture(scope="module")
def model() -> Any:
    return hunyuan_video()


def through(program: Program | None, clip: torch.Tensor, plan: StripPlan) -> torch.Tensor:
    """The whole output of one clip or several, after a check that no block is given twice or forgotten."""
    assert program is not None
    frames = frames_of(program, clip.shape[2])
    given: list[tuple[int, int, torch.Tensor]] = []

    def window(image: torch.Tensor, sink: RowSink) -> None:
        run(program, image, plan, sink)

    for index, one in enumerate(clip):
        run_windows(program, one.transpose(0, 1), window, lambda *block: given.append(block), index * frames)
    height = max(row + block.shape[2] for _, row, block in given)
    assert sum(len(block) * block.shape[2] for _, _, block in given) == len(clip) * frames * height
    canvas = Canvas(len(clip) * frames, height, lambda block: block, row_axis=2)
    for block in given:
        canvas.put(*block)
    return canvas.output.unflatten(0, (len(clip), frames)).transpose(1, 2)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 8])
def test_decode(frames: int, plan: str, model: Any) -> None:
    """Decoding in strips of any height differs from diffusers by rounding alone, for pictures, clips and windows."""
    z = torch.randn(1, 4, frames, 3, 5)
    assert apart(through(describe_decoder(model), z, PLANS[plan]), model.decode(z).sample) < CLOSE


@pytest.mark.parametrize("frames", [6, 7, 9])
def test_decode_of_long_clips(frames: int, model: Any) -> None:
    """However many windows a clip has, and however short the last one is, they are blended as diffusers does."""
    z = torch.randn(2, 4, frames, 3, 2)
    assert apart(through(describe_decoder(model), z, StripPlan(FEW_ROWS)), model.decode(z).sample) < CLOSE


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("frames", [1, 2, 9, 17])
def test_encode(frames: int, plan: str, model: Any) -> None:
    """Encoding in strips of any height differs from diffusers by rounding alone."""
    x = torch.randn(1, 3, frames, 24, 40)
    found = through(describe_encoder(model), x, PLANS[plan])
    assert apart(found, model.encode(x).latent_dist.parameters) < CLOSE


@pytest.mark.parametrize("frames", [4, 13, 16, 18, 20, 21, 25, 29, 33])
def test_encode_of_long_clips(frames: int, model: Any) -> None:
    """Any number of frames is cut into windows and blended as diffusers does."""
    x = torch.randn(2, 3, frames, 16, 24)
    found = through(describe_encoder(model), x, StripPlan(FEW_ROWS))
    assert apart(found, model.encode(x).latent_dist.parameters) < CLOSE


def test_windows_without_a_share_do_not_run(model: Any) -> None:
    """A window that only repeats what is before it costs nothing: 17 frames are encoded as one window."""
    lengths: list[int] = []
    program = describe_encoder(model)
    assert program is not None

    def window(image: torch.Tensor, sink: RowSink) -> None:
        lengths.append(len(image))
        run(program, image, StripPlan(2**40), sink)

    for frames in (17, 25, 29):
        run_windows(program, torch.randn(frames, 3, 16, 16), window, lambda *block: None, 0)
    assert lengths == [17, 17, 13, 17, 17]


def forgets_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "lead_of", lambda layer, frames: max(0, filters.lead_of(layer, frames) - 1))


def forgets_a_halo_row(monkeypatch: pytest.MonkeyPatch) -> None:
    window = rows.Normalised.window

    def forgetful(self: rows.Normalised, start: int, stop: int, **options: Any) -> torch.Tensor:
        found = window(self, start, stop, **options).clone()
        found[:, :, -1] = 0
        return found

    monkeypatch.setattr(rows.Normalised, "window", forgetful)


def forgets_other_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChannelMoments, "merge", lambda self, other: self)


def sees_later_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_order(part: Any, **changes: Any) -> Any:
        return replace(part, **{name: value for name, value in changes.items() if name != "causal"})

    monkeypatch.setattr(stages_of_hunyuan, "replace", without_order)


def does_not_blend(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = clips._Blending.begin

    def forgetful(self: Any, index: int) -> None:
        begin(self, index)
        self._before = torch.zeros_like(self._before) if index else None

    monkeypatch.setattr(clips._Blending, "begin", forgetful)


@pytest.mark.parametrize(
    "plant", [forgets_a_frame, forgets_a_halo_row, forgets_other_strips, sees_later_frames, does_not_blend]
)
def test_planted_errors(
    plant: Callable[[pytest.MonkeyPatch], None], model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above notice a frame, a halo row, a strip's statistics, or a window that is forgotten."""
    z = torch.randn(1, 4, 5, 3, 2)
    plant(monkeypatch)
    assert apart(through(describe_decoder(model), z, StripPlan(FEW_ROWS)), model.decode(z).sample) > 100 * CLOSE


def decoded(model: Any, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return through(describe_decoder(model), z, StripPlan(2**17)), model.decode(z).sample


def encoded(model: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return through(describe_encoder(model), x, StripPlan(2**17)), model.encode(x).latent_dist.parameters


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("both", "shape"), [(decoded, (1, 4, 1, 8, 8)), (decoded, (1, 4, 3, 8, 8)), (encoded, (1, 3, 5, 48, 48))]
)
def test_16_bits(both: Callable[..., Any], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """In 16 bits, strips are as near to the float32 result as diffusers is in the same precision, within 0.5 dB."""
    model, given = hunyuan_video((32, 64, 64, 64)), torch.randn(shape)
    reference = both(model, given)[1]
    found, theirs = both(cast(model, dtype), given.to(dtype))

    def noise(result: torch.Tensor) -> torch.Tensor:
        return 10 * torch.log10((result.float() - reference).square().mean())

    assert noise(found) - noise(theirs) < 0.5


@pytest.mark.parametrize("decoding", [True, False])
@pytest.mark.parametrize(("frames", "dtype"), [(1, torch.float32), (5, torch.float32), (5, torch.bfloat16)])
def test_prediction(frames: int, decoding: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every executor's predicted peak is within 15 % of the live bytes that a run holds."""
    for room in ("attention", "steps"):
        monkeypatch.setattr(f"remote_vae.core.{room}.CHUNK_BYTES", 64 * 1024)
    model = cast(hunyuan_video((16, 32, 64, 64), layers=2), dtype)
    program = describe_decoder(model) if decoding else describe_encoder(model)
    assert program is not None
    shape = (1, 4, frames, 12, 8) if decoding else (1, 3, 4 * frames - 3, 96, 64)
    for executor in strip_executors(program, "cpu", 1):
        given = torch.randn(shape).to(dtype)
        with LiveBytes() as live:
            executor.run(given.clone(), lambda *block: None, lambda: None)
        assert live.current == 0
        assert abs(executor.peak_bytes(shape, dtype, 0) / live.peak - 1) < 0.15


@pytest.mark.parametrize(("shape", "most"), [((1, 16, 16, 40, 64), 2.5e9), ((1, 16, 33, 90, 160), 8e9)])
def test_plan_of_true_clips(shape: tuple[int, ...], most: float) -> None:
    """61 frames of 320x512 in float32, and 129 frames of 720x1280 in bfloat16, have a plan for a common machine."""
    dtype = torch.float32 if shape[2] == 16 else torch.bfloat16
    with torch.device("meta"):
        model = cast(AutoencoderKLHunyuanVideo().eval().requires_grad_(False), dtype)
    program = describe_decoder(model)
    assert program is not None
    peaks = {executor.name: executor.peak_bytes(shape, dtype, 0) for executor in strip_executors(program, "cpu", 2)}
    assert peaks["strips-recompute"] < peaks["strips"] < peaks["whole"]
    assert peaks["strips-recompute"] < most


def test_no_strip_is_too_large_for_a_library() -> None:
    """A clip whose maps have more than 2**31 values runs `whole` in a few strips that have fewer, halos included."""
    with torch.device("meta"):
        model = cast(AutoencoderKLHunyuanVideo().eval().requires_grad_(False), torch.bfloat16)
    program = describe_decoder(model)
    assert program is not None
    sizes = list(map_sizes(program, MapSize(90, 160, 16, 2, frames=5)))
    plan = Strips("whole", program, "cuda").plan(sizes[0])
    assert max(size.map_bytes // size.item_bytes for size in sizes) > 2**31
    assert max(size.strips(plan, halo=2, lead=2) // size.item_bytes for size in sizes) < 2**31
    assert sum(plan.rows(size) < size.height for size in sizes) < len(sizes) / 2


def test_unknown_parts_are_not_described(model: Any) -> None:
    """A model with any part that the stages cannot say is left to its own code."""
    other = hunyuan_video()
    other.decoder.conv_act = torch.nn.ReLU()
    assert describe_decoder(other) is None
    assert describe_encoder(other) is not None
    other.encoder.conv_in.pad_mode = "constant"
    assert describe_encoder(other) is None


def test_clips_of_a_batch_are_run_one_by_one(model: Any) -> None:
    """Blocks of a batch come clip by clip, and the number of a frame counts the frames of all clips."""
    program = describe_decoder(model)
    assert program is not None
    firsts: list[int] = []
    executor = Strips("whole", program, "cpu")
    executor.run(torch.randn(2, 4, 5, 2, 2), lambda first, row, block: firsts.append(first), lambda: None)
    assert firsts == [0, 13, 17, 30]
