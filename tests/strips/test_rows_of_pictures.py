"""Tiny previews and Stable Cascade's stage A run a few rows at a time and give what their own code gives."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from torch.nn import functional

from remote_vae.core.canvas import Canvas
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.previews.taef2 import TAEF2
from remote_vae.models.stages import paella, tiny_autoencoder
from remote_vae.models.vae import DiffusersVAE

from .local_networks import forgets_the_row_of_a_step, knows_the_first_block_only, lost_decibels
from .models import shaken
from .test_exact import cast

CLOSE = 1e-5  # of the largest value
LATENTS = ((2, 5, 7), (1, 1, 1), (1, 17, 6))  # pictures, rows and columns
DIRECTIONS = pytest.mark.parametrize("decoding", [True, False])


def stage_a(width: int = 16, blocks: int = 2) -> torch.nn.Module:
    """With statistics of the last norm, which is fixed, that are not neutral."""
    module = PaellaVQModel(embed_dim=width, bottleneck_blocks=blocks, num_vq_embeddings=8)
    for name, values in module.named_buffers():
        if values.ndim:
            values.uniform_(0.3, 3 if name.endswith("var") else 1)
    return module


def tiny() -> torch.nn.Module:
    return AutoencoderTiny(encoder_block_out_channels=(16,) * 4, decoder_block_out_channels=(16,) * 4)


def tiny_of_flux2() -> torch.nn.Module:
    return TAEF2(latent_channels=4, width=16)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A row. `wide` makes a module whose maps are larger than all else; pixels of a `cell` become one of a latent."""

    model: str
    made: Callable[[], torch.nn.Module]
    wide: Callable[[], torch.nn.Module]
    cell: int = 8
    saved: tuple[int, int] = (64, 32)  # rows and columns of a latent for which rows save memory
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)


PREVIEW = Kind(model="taesd", made=tiny, wide=tiny)
PREVIEW_OF_FLUX2 = Kind(model="taef2", made=tiny_of_flux2, wide=tiny_of_flux2)
STAGE_A = Kind(
    model="stable-cascade",
    made=stage_a,
    wide=lambda: stage_a(96, 12),
    cell=4,
    saved=(64, 48),
    dtypes=(torch.bfloat16,),
)
KINDS = (PREVIEW, PREVIEW_OF_FLUX2, STAGE_A)
EACH = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.model)


def named(value: object) -> str:
    return value.model if isinstance(value, Kind) else getattr(value, "__name__", str(value))


def served(kind: Kind, made: Callable[[], torch.nn.Module] | None = None, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(5)
    family, module = family_of(MODELS[kind.model]), shaken((made or kind.made)())
    family.prepare(module)
    return DiffusersVAE(cast(module, dtype), source="m", revision="", family=family)


def given(kind: Kind, count: int, height: int, width: int, *, decoding: bool) -> torch.Tensor:
    """A latent, or pixels."""
    if decoding:
        return torch.randn(count, 4, height, width)
    return torch.randn(count, 3, kind.cell * height, kind.cell * width)


def by_rows(vae: DiffusersVAE, batch: torch.Tensor, height: int, *, decoding: bool, block_bytes: int) -> torch.Tensor:
    """The output, which is so high, of a run by blocks of rows."""
    rows: Any = next(each for each in (vae.decoders if decoding else vae.encoders) if each.name == "rows")
    canvas = Canvas(len(batch), height, lambda block: block, row_axis=2)
    replace(rows, block_bytes=block_bytes).run(batch, canvas.put, lambda: None)
    return canvas.output


def apart(vae: DiffusersVAE, batch: torch.Tensor, *, decoding: bool, block_bytes: int) -> float:
    expected = vae.decode(batch) if decoding else vae.encode(batch)
    found = by_rows(vae, batch, expected.shape[2], decoding=decoding, block_bytes=block_bytes)
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("size", LATENTS)
@pytest.mark.parametrize("block_bytes", [1, 2000, 2**23])
@DIRECTIONS
@EACH
@torch.inference_mode()
def test_equals_own_code(kind: Kind, decoding: bool, block_bytes: int, size: tuple[int, int, int]) -> None:
    """Blocks of one row and more, odd sizes and batches, both ways."""
    batch = given(kind, *size, decoding=decoding)
    assert apart(served(kind), batch, decoding=decoding, block_bytes=block_bytes) < CLOSE


@pytest.mark.parametrize(("kind", "dtype"), [(kind, dtype) for kind in KINDS for dtype in kind.dtypes], ids=named)
@torch.inference_mode()
def test_sixteen_bits(kind: Kind, dtype: torch.dtype) -> None:
    """As near to float32 as own code is in the same precision, or nearer: at most 0.5 dB less."""
    z = torch.randn(1, 4, 12, 12)
    exact, vae = served(kind).decode(z), served(kind, dtype=dtype)
    ours = by_rows(vae, z.to(dtype), exact.shape[2], decoding=True, block_bytes=1)
    assert lost_decibels(ours, vae.decode(z.to(dtype)), exact) < 0.5


@EACH
@torch.inference_mode()
def test_rows_save_memory(kind: Kind) -> None:
    """Own code comes first; rows hold less than half as much, and both ways are predicted within 15 %."""
    vae = served(kind, kind.wide)
    for executors, decoding in ((vae.decoders, True), (vae.encoders, False)):
        batch, peaks = given(kind, 1, *kind.saved, decoding=decoding), []
        for executor in (executors[0], replace(executors[-1], block_bytes=2**16)):
            with LiveBytes() as live:
                executor.run(batch.clone(), lambda *block: None, lambda: None)
            predicted = executor.peak_bytes(tuple(batch.shape), torch.float32, 0)
            assert predicted is not None
            assert abs(predicted / live.peak - 1) < 0.15, (executor, predicted, live.peak)
            peaks.append(live.peak)
        assert peaks[1] < 0.5 * peaks[0]


def test_unknown_parts_are_not_described() -> None:
    """Another kernel is left to the model's own code."""
    module = served(STAGE_A).module
    module.up_blocks[0] = torch.nn.Conv2d(4, 16, 3, dilation=2)
    assert paella.describe(module) is None


# --- faults that the comparison must see ---


def forgets_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_autoencoder, "limited", lambda rows: rows)


def sees_zeros_around_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SimpleNamespace(pad=lambda window, sides, mode="": functional.pad(window, sides), conv2d=functional.conv2d)
    monkeypatch.setattr(paella, "functional", wrong)


@pytest.mark.parametrize(
    ("kind", "decoding", "plant"),
    [
        (PREVIEW, True, forgets_limits),
        (PREVIEW, False, forgets_the_row_of_a_step),
        (PREVIEW_OF_FLUX2, True, knows_the_first_block_only),
        (PREVIEW_OF_FLUX2, False, knows_the_first_block_only),
        (STAGE_A, True, sees_zeros_around_the_picture),
        (STAGE_A, False, sees_zeros_around_the_picture),
    ],
    ids=named,
)
@torch.inference_mode()
def test_planted_errors(
    kind: Kind, decoding: bool, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    batch = 3 * given(kind, 1, 9, 7, decoding=decoding)
    assert apart(served(kind), batch, decoding=decoding, block_bytes=1) > 100 * CLOSE
