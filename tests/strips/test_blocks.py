"""Local networks run block by block and give what diffusers gives, whatever the blocks; what they keep is their own."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import zip_longest

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLQwenImage21, AutoencoderKLWan

from remote_vae.core.block import Block, Past, Run
from remote_vae.core.blocks import Blocks, Maps
from remote_vae.core.executor import NO_ARGUMENTS, Arguments
from remote_vae.core.local import Local
from remote_vae.core.stream_layer import Convolved
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.stages.causal import describe
from remote_vae.models.vae import DiffusersVAE

from .local_networks import lost_decibels, off, ways_of
from .models import shaken

CPU = torch.device("cpu")
CLOSE = 1e-5  # of the largest value
FEW, ALL = 1, 2**40
ORDERS = ("frames", "rows")
TINY = {"base_dim": 8, "num_res_blocks": 1, "dim_mult": [1, 2, 2, 2]}


def wan() -> AutoencoderKLWan:
    torch.manual_seed(0)
    return shaken(AutoencoderKLWan(**TINY))


def residual() -> AutoencoderKLWan:
    """Of the kind of Wan 2.2, with patches and with shortcuts around its levels."""
    torch.manual_seed(1)
    return shaken(
        AutoencoderKLWan(
            **TINY,
            decoder_base_dim=16,
            z_dim=8,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            latents_mean=[0.1] * 8,
            latents_std=[1.5] * 8,
        )
    )


def qwen() -> AutoencoderKLQwenImage:
    torch.manual_seed(2)
    return shaken(AutoencoderKLQwenImage(**TINY))


def flat() -> AutoencoderKLQwenImage21:
    """Of the kind of Wan 2.2 for pictures: it takes one frame."""
    torch.manual_seed(3)
    return shaken(
        AutoencoderKLQwenImage21(
            **TINY,
            decoder_base_dim=16,
            z_dim=8,
            temperal_downsample=[False, True, True],
            in_channels=12,
            out_channels=12,
            patch_size=2,
            latents_mean=[0.1] * 8,
            latents_std=[1.5] * 8,
        )
    )


KINDS: dict[str, Callable[[], torch.nn.Module]] = {"wan": wan, "wan2.2": residual, "qwen": qwen, "qwen2.1": flat}
ONE_FRAME = (AutoencoderKLQwenImage21,)


@pytest.fixture(scope="module", params=KINDS)
def module(request: pytest.FixtureRequest) -> torch.nn.Module:
    return KINDS[request.param]()


def ways(module: torch.nn.Module, order: str, block_bytes: int) -> tuple[Blocks, ...]:
    """The decoder and the encoder."""
    return ways_of(describe, module, order, block_bytes)


def given_by(way: Blocks, batch: torch.Tensor, arguments: Arguments = NO_ARGUMENTS) -> torch.Tensor:
    """The output of a run. *Shapes*: [B,C,F,H,W] both."""
    blocks: list[tuple[int, int, torch.Tensor]] = []
    with torch.inference_mode():
        way.run(batch, lambda first, row, block: blocks.append((first, row, block.clone())), lambda: None, arguments)
    pictures = max(first + len(block) for first, _, block in blocks)
    height = max(row + block.shape[2] for _, row, block in blocks)
    found = torch.full((pictures, blocks[0][2].shape[1], height, blocks[0][2].shape[3]), torch.nan)
    for first, row, block in blocks:
        found[first : first + len(block), :, row : row + block.shape[2]] = block
    return found.unflatten(0, (len(batch), -1)).transpose(1, 2)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def latent_of(module: torch.nn.Module, frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, module.config.z_dim, frames, height, width)


def pixels_of(module: torch.nn.Module, frames: int, height: int = 3, width: int = 2, batch: int = 1) -> torch.Tensor:
    ratio = 8 * (getattr(module.config, "patch_size", None) or 1)
    return torch.rand(batch, 3, 1 + 4 * (frames - 1), ratio * height, ratio * width) * 2 - 1


@pytest.mark.parametrize("block_bytes", [FEW, 2**14, ALL])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("frames", "batch"), [(1, 2), (2, 1), (4, 1)])
def test_equals_diffusers(module: torch.nn.Module, frames: int, batch: int, order: str, block_bytes: int) -> None:
    """Both ways, from blocks of one row to whole maps, for odd sizes, one frame and several, and batches."""
    frames = 1 if isinstance(module, ONE_FRAME) else frames
    decoder, encoder = ways(module, order, block_bytes)
    z, x = latent_of(module, frames, batch=batch), pixels_of(module, frames, batch=batch)
    assert apart(given_by(decoder, z), module.decode(z).sample) < CLOSE
    assert apart(given_by(encoder, x), module.encode(x).latent_dist.parameters) < CLOSE


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (9, 1)])
def test_smallest_sides(module: torch.nn.Module, size: tuple[int, int]) -> None:
    z = latent_of(module, 1 if isinstance(module, ONE_FRAME) else 2, *size)
    for order in ORDERS:
        assert apart(given_by(ways(module, order, FEW)[0], z), module.decode(z).sample) < CLOSE


def test_nine_latent_frames() -> None:
    model = wan()
    z, x = latent_of(model, 9), pixels_of(model, 9)
    for order in ORDERS:
        decoder, encoder = ways(model, order, 2**16)
        assert apart(given_by(decoder, z), model.decode(z).sample) < CLOSE
        assert apart(given_by(encoder, x), model.encode(x).latent_dist.parameters) < CLOSE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """As near to float32 as diffusers is in the same precision, or nearer: at most 0.5 dB less."""
    model = wan()
    z = latent_of(model, 2, 6, 6)
    with torch.inference_mode():
        exact = model.decode(z).sample
        model.to(dtype)
        theirs = model.decode(z.to(dtype)).sample
    assert lost_decibels(given_by(ways(model, "frames", 2**14)[0], z.to(dtype)), theirs, exact) < 0.5


# --- faults that the comparison must see ---


def test_a_dropped_frame_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wan()
    z = latent_of(model, 3)
    monkeypatch.setattr(Past, "begin", lambda self, moment: (deque(), lambda frames: None))
    assert apart(given_by(ways(model, "frames", ALL)[0], z), model.decode(z).sample) > 100 * CLOSE


@pytest.mark.parametrize("build", [wan, flat])
def test_a_forgotten_row_is_seen(build: Callable[[], torch.nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows above a block are read as zeros."""
    model = build()
    z = latent_of(model, 1, 6)
    honest = Convolved._window

    def forgetful(self: Convolved, piece: Block, held: torch.Tensor | None, *rest: object) -> object:
        return honest(self, piece, None if held is None else torch.zeros_like(held), *rest)

    monkeypatch.setattr(Convolved, "_window", forgetful)
    assert apart(given_by(ways(model, "rows", FEW)[0], z), model.decode(z).sample) > 100 * CLOSE


# --- what a run keeps ---


def test_two_runs_interleave() -> None:
    """Two jobs on one module, whose blocks alternate, do not touch each other."""
    model = wan()
    one, two = latent_of(model, 3), latent_of(model, 3, 5)
    decoder = ways(model, "frames", FEW)[0]
    expected = [model.decode(z).sample for z in (one, two)]
    found: list[list[tuple[int, int, torch.Tensor]]] = [[], []]

    def steps(z: torch.Tensor, into: list[tuple[int, int, torch.Tensor]]) -> Iterator[None]:
        maps = stream_of(decoder, z)
        done = 0
        for blocks in maps:
            row = count = 0
            for block in blocks:
                into.append((done, row, block.rows.clone()))
                row, count = row + block.rows.shape[2], len(block.rows)
                yield
            done += count

    with torch.inference_mode():
        for _ in zip_longest(steps(one, found[0]), steps(two, found[1])):
            pass
    for blocks, reference in zip(found, expected, strict=True):
        whole = torch.empty_like(reference[0].transpose(0, 1))
        for first, row, block in blocks:
            whole[first : first + len(block), :, row : row + block.shape[2]] = block
        assert apart(whole, reference[0].transpose(0, 1)) < CLOSE


def stream_of(way: Blocks, z: torch.Tensor) -> Iterator[Iterator[Block]]:
    run = Run(CPU, 4, way.block_bytes)
    return way._section(way.program.stages, Maps([z[0].transpose(0, 1)]), run)


@pytest.mark.parametrize("order", ORDERS)
def test_prediction(order: str) -> None:
    """The predicted peak is within 15 % of the live bytes, both ways, of clips with few frames and with many."""
    torch.manual_seed(0)
    model = shaken(AutoencoderKLWan(base_dim=32, num_res_blocks=1, dim_mult=[1, 2, 2, 2]))
    for frames, height, width in ((3, 12, 8), (6, 8, 20)):
        z, x = latent_of(model, frames, height, width), pixels_of(model, frames, height, width)
        for way, batch in zip(ways(model, order, 2**20), (z, x), strict=True):
            assert abs(off(way, batch)) < 0.15


def test_orders_save_memory() -> None:
    """Of what diffusers' decode of a clip holds, `frames` holds less than half and `rows` less than a quarter."""
    torch.manual_seed(0)
    model = shaken(AutoencoderKLWan(base_dim=32, num_res_blocks=2, dim_mult=[1, 2, 4, 4]))
    vae = DiffusersVAE(model, source="seeded", revision="", family=family_of(MODELS["wan2.1"]))
    shape = (1, 16, 5, 60, 104)
    peaks = {way.name: way.peak_bytes(shape, torch.float32, 0) for way in vae.decoders if way.exact}
    whole = peaks["whole"]
    assert whole is not None
    assert peaks["frames"] < 0.5 * whole
    assert peaks["rows"] < 0.25 * whole


def test_other_architectures_run_by_their_own_code() -> None:
    model = wan()
    model.decoder.conv_in.stride = (1, 2, 2)
    assert describe(model) is None


def test_described_networks_have_sections() -> None:
    found = describe(qwen())
    assert found is not None
    assert all(isinstance(part, Local) and len(part.sections) == 2 for part in found)
