"""LTX-Video 0.9 runs block by block and gives what diffusers gives, with its timestep, its noise and its seed."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch.nn import functional

from numerics.cases.ltx import GROUPS, TIMESTEPS, tiny_ltx
from remote_vae.core import stream, stream_frames
from remote_vae.core.blocks import Blocks
from remote_vae.core.executor import NO_ARGUMENTS
from remote_vae.core.kept import Kept
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.families.ltx import decode_at_timestep
from remote_vae.models.stages import local_parts
from remote_vae.models.stages import ltx_video as stages
from remote_vae.models.vae import DiffusersVAE

from .local_networks import drops_frames, encoded, forgets_rows, lost_decibels, off, ways_of
from .models import shaken
from .test_blocks import ALL, CLOSE, CPU, FEW, ORDERS, apart, given_by

NOISE = {"decoder_inject_noise": (True,) * 4}
KINDS: dict[str, dict[str, Any]] = {
    "ltx": {"block_out_channels": (8, 8, 16, 16)},
    "ltx-0.9.1": {**TIMESTEPS, **NOISE},
    "ltx-0.9.5": {**TIMESTEPS, **GROUPS},
    "causal": {**TIMESTEPS, **NOISE, "decoder_causal": True},
}
ARGUMENTS = {"decode_timestep": 0.3, "decode_noise_scale": 0.2, "seed": 5}


def made(kind: str, **config: Any) -> Any:
    torch.manual_seed(0)
    return shaken(tiny_ltx(**{**KINDS[kind], **config}))


@pytest.fixture(scope="module", params=KINDS)
def module(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


def ways(module: Any, order: str, block_bytes: int) -> tuple[Blocks, ...]:
    """The decoder and the encoder."""
    return ways_of(stages.describe, module, order, block_bytes)


def latent_of(frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 128, frames, height, width)


def pixels_of(frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, 1 + 8 * (frames - 1), 32 * height, 32 * width) * 2 - 1


def taken(module: Any) -> Mapping[str, Any]:
    return ARGUMENTS if module.config.timestep_conditioning else NO_ARGUMENTS


def decoded(module: Any, z: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return decode_at_timestep(module, z, **taken(module))


def decoded_by(module: Any, order: str, block_bytes: int, z: torch.Tensor) -> torch.Tensor:
    return given_by(ways(module, order, block_bytes)[0], z, taken(module))


@pytest.mark.parametrize(("frames", "batch"), [(1, 2), (2, 1), (3, 2), (4, 1)])
def test_equals_diffusers(module: Any, frames: int, batch: int) -> None:
    """Both ways, from blocks of one row to whole maps, for odd sizes, one frame and several, and batches."""
    z, x = latent_of(frames, batch=batch), pixels_of(frames, batch=batch)
    pixels, parameters = decoded(module, z), encoded(module, x)
    for order in ORDERS:
        for block_bytes in (FEW, 2**14, ALL):
            assert apart(decoded_by(module, order, block_bytes, z), pixels) < CLOSE
            assert apart(given_by(ways(module, order, block_bytes)[1], x), parameters) < CLOSE


def test_nine_latent_frames() -> None:
    model = made("ltx-0.9.1")
    z, x = latent_of(9, 1), pixels_of(9, 1)
    assert apart(decoded_by(model, "rows", 2**16, z), decoded(model, z)) < CLOSE
    for order in ORDERS:
        assert apart(given_by(ways(model, order, 2**16)[1], x), encoded(model, x)) < CLOSE


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
@pytest.mark.parametrize("block_bytes", [FEW, ALL])
def test_smallest_sides(module: Any, size: tuple[int, int], block_bytes: int) -> None:
    z = latent_of(2, *size)
    assert apart(decoded_by(module, "rows", block_bytes, z), decoded(module, z)) < CLOSE


@pytest.mark.parametrize("arguments", [{}, {"decode_timestep": 0.3, "seed": 5}, {"decode_noise_scale": 0.1, "seed": 6}])
def test_what_a_request_tells(arguments: dict[str, Any]) -> None:
    """A request of its own timestep does not change the next one's."""
    model, z = made("ltx-0.9.5"), latent_of(2)
    decoder = ways(model, "rows", 2**14)[0]
    for told in (arguments, ARGUMENTS, arguments):
        with torch.inference_mode():
            expected = decode_at_timestep(model, z, **told)
        assert apart(given_by(decoder, z, told), expected) < CLOSE


def test_other_draws_are_not_disturbed() -> None:
    model, z = made("ltx-0.9.1"), latent_of(1)
    torch.manual_seed(3)
    expected = torch.randn(3)
    torch.manual_seed(3)
    decoded_by(model, "rows", ALL, z)
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """As near to float32 as diffusers is in the same precision, or nearer: at most 0.5 dB less."""
    model, z = made("ltx-0.9.5"), latent_of(2, 4, 4)
    arguments = {"decode_timestep": 0.25}
    with torch.inference_mode():
        exact = decode_at_timestep(model, z, decode_noise_scale=0, **arguments)
        model.to(dtype)
        theirs = decode_at_timestep(model, z.to(dtype), decode_noise_scale=0, **arguments)
    ours = given_by(ways(model, "rows", 2**14)[0], z.to(dtype), {**arguments, "decode_noise_scale": 0})
    assert lost_decibels(ours, theirs, exact) < 0.5


@pytest.mark.parametrize("kind", ["ltx", "ltx-0.9.1", "ltx-0.9.5"])
def test_prediction(kind: str) -> None:
    """The predicted peak is within 15 % of the live bytes, both ways."""
    widths = {key: tuple(4 * width for width in value) for key, value in KINDS[kind].items() if "out_channels" in key}
    model = made(kind, **widths)
    for order, way, batch in (
        ("rows", 0, latent_of(3, 6, 4)),
        ("rows", 1, pixels_of(2, 6, 4)),
        ("frames", 1, pixels_of(4, 6, 4)),
    ):
        executor = ways(model, order, 2**20)[way]
        arguments = NO_ARGUMENTS if way else taken(model)
        assert abs(off(executor, batch, arguments)) < 0.15, (order, way)


@pytest.mark.parametrize("name", ["ltx", "ltx-0.9.1", "ltx-0.9.5"])
def test_memory_of_true_clips(name: str) -> None:
    """Of what diffusers holds for 49 frames of 512x704, rows hold less than a third both ways."""
    family, config = family_of(MODELS[name]), MODELS[name].config
    with torch.device("meta"):
        model = family.load_class()(**(config or {})).eval().requires_grad_(False)
    found = stages.describe(model)
    assert found is not None
    shares = []
    for program, shape, own in (
        (found[0], (1, 128, 7, 16, 22), lambda z: decode_at_timestep(model, z)),
        (found[1], (1, 3, 49, 512, 704), model.encode),
    ):
        way = Blocks("rows", True, program, lambda program=program: program, CPU, 2**21, Kept(), True)
        with torch.inference_mode(), LiveBytes() as live:
            own(torch.empty(shape, device="meta"))
        shares.append(way.peak_bytes(shape, torch.float32, 0) / live.peak)
    assert max(shares) < 0.33, shares


def test_the_faster_way_comes_first() -> None:
    """In float32 a CPU computes rows that wait for later frames faster than the decoder's own code; otherwise that is
    chosen if it fits.
    """
    for dtype, first in ((torch.float32, "rows"), (torch.bfloat16, "whole")):
        module = made("ltx-0.9.5").to(dtype)
        vae = DiffusersVAE(module, source="", revision="", family=family_of(MODELS["ltx-0.9.5"]))
        assert [way.name for way in (vae.decoders[0], vae.encoders[0])] == [first, "frames"]
    assert "rows" in vae.info.plans


def test_other_architectures_run_by_their_own_code() -> None:
    assert stages.describe(made("ltx", patch_size_t=2)) is None


# --- faults that the comparison must see ---


def forgets_the_row_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = functional.pad

    def forgetful(window: torch.Tensor, sides: tuple[int, ...], **how: Any) -> torch.Tensor:
        if len(sides) == 4 and sides[2] == 0:
            window[:, :, 0] = 0
        return honest(window, sides, **how)

    monkeypatch.setattr(local_parts.functional, "pad", forgetful)


def sees_the_noise_of_the_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = stream._Plus.through

    def forgetful(self: Any, source: Any, moment: Any) -> Any:
        for block in source:
            yield from honest(self, iter((block,)), moment)

    monkeypatch.setattr(stream._Plus, "through", forgetful)


def zeros_before_the_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        stream_frames.ThreeOfFrames, "_first", lambda self, frame: self._of([torch.zeros_like(frame)] * 2 + [frame])
    )


@pytest.mark.parametrize(
    ("kind", "encodes", "order", "plant"),
    [
        ("ltx", True, "frames", drops_frames),
        ("ltx", True, "frames", zeros_before_the_first_frame),
        ("ltx", True, "rows", forgets_the_row_of_a_step),
        ("causal", False, "frames", drops_frames),
        ("ltx-0.9.5", False, "rows", forgets_rows),
        ("ltx-0.9.1", False, "rows", sees_the_noise_of_the_first_rows),
    ],
)
def test_planted_errors(
    kind: str, encodes: bool, order: str, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(kind)
    given = pixels_of(3) if encodes else latent_of(3)
    expected = encoded(model, given) if encodes else decoded(model, given)
    plant(monkeypatch)
    way = ways(model, order, FEW)[encodes]
    assert apart(given_by(way, given, NO_ARGUMENTS if encodes else taken(model)), expected) > 100 * CLOSE
