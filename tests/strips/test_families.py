"""Each family of videos runs block by block and gives what diffusers gives. A new one is a row of `families.py`."""

from collections.abc import Callable, Iterable
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from remote_vae.core.blocks import block_executors
from remote_vae.core.kept import Kept
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.vae import DiffusersVAE

from .families import FAMILIES, Family, Plant
from .local_networks import CPU, lost_decibels, off
from .test_blocks import ALL, CLOSE, FEW, apart, given_by

EACH = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model)


def every(names: str, of: Callable[[Family], Iterable[Any]]) -> pytest.MarkDecorator:
    """Parameters: each family with each of something that it has."""
    rows = [(family, one) for family in FAMILIES for one in of(family)]
    return pytest.mark.parametrize(
        ("family", names), rows, ids=[f"{family.model}-{_name(one)}" for family, one in rows]
    )


def _name(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_name, value))
    return getattr(value, "__name__", str(value))


@cache
def tiny(family: Family) -> Any:
    return family.made()


def check(family: Family, order: str, sizes: tuple[int, ...], clips: tuple[torch.Tensor, ...]) -> None:
    """Decoder and encoder give what diffusers gives, by blocks of each size."""
    module = tiny(family)
    expected = [run(module, given) for run, given in zip(family.runs, clips, strict=True)]
    for block_bytes in sizes:
        for way, given, found in zip(family.ways(module, block_bytes, order), clips, expected, strict=True):
            assert apart(given_by(way, given), found) < CLOSE


@every("order_and_clip", lambda family: product(family.orders, family.clips))
def test_equals_diffusers(family: Family, order_and_clip: tuple[str, tuple[int, int]]) -> None:
    """Both ways, from blocks of one row to whole maps, for one latent frame and several, and batches."""
    order, (frames, batch) = order_and_clip
    check(family, order, (FEW, 2**14, ALL) if frames < 9 else (2**14,), family.both(frames, batch=batch))


@every("order_and_size", lambda family: product(family.orders, family.smallest))
def test_smallest_sides(family: Family, order_and_size: tuple[str, tuple[int, int]]) -> None:
    order, size = order_and_size
    check(family, order, (FEW, ALL), family.both(2, *size))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EACH
def test_sixteen_bits(family: Family, dtype: torch.dtype) -> None:
    """A decode is as near to float32 as diffusers is in the same precision, or nearer: at most 0.5 dB less."""
    module, z, decode = family.made(), family.latent(3, 4, 4), family.runs[0]
    exact = decode(module, z)
    module.to(dtype)
    found = given_by(family.ways(module, 2**14, family.orders[-1])[0], z.to(dtype))
    assert lost_decibels(found, decode(module, z.to(dtype)), exact) < 0.5


@every("order_and_clip", lambda family: product(family.orders, family.predicted))
def test_prediction(family: Family, order_and_clip: tuple[str, tuple[int, int, int]]) -> None:
    """The predicted peak is within 15 % of the live bytes, both ways, whatever the length of a clip."""
    order, clip = order_and_clip
    for way, given in zip(family.ways(family.made(**family.wide), 2**20, order), family.both(*clip), strict=True):
        assert abs(off(way, given)) < 0.15


@EACH
def test_memory_of_true_clips(family: Family) -> None:
    """Plans come in their order; of what diffusers holds for true layers, one holds less than its share, both ways."""
    about = MODELS[family.model]
    with torch.device("meta"):
        module = family_of(about).load_class()(**(about.config or {})).eval().requires_grad_(False)
    vae = DiffusersVAE(module, source="", revision="", family=family_of(about))
    both = (vae.decoders, vae.encoders)
    for found, shape, share, plans in zip(both, family.true, family.shares, family.plans, strict=True):
        assert tuple(dict.fromkeys(way.name for way in found)) == plans
        own, ours = (next(way for way in found if way.name == name) for name in (family.own, family.saves))
        peaks = [way.peak_bytes(shape, torch.float32, 0) or 0 for way in (ours, own)]
        assert 0 < peaks[0] < share * peaks[1], peaks


@EACH
def test_orders(family: Family) -> None:
    """Frames that see later ones run together; where norms wait for all rows, rows of all frames would save nothing."""
    found = family.stages.describe(tiny(family))
    assert found is not None
    for program in found:
        names = {way.name for way in block_executors(program, lambda told=program: told, CPU, Kept())}
        assert names == set(("rows",) if program.only_rows else family.orders)


@every("fault", lambda family: family.plants)
def test_planted_errors(family: Family, fault: tuple[int, Plant], monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees a fault that is planted in our code."""
    direction, plant = fault
    given = (family.latent, family.pixels)[direction](family.planted)
    expected = family.runs[direction](tiny(family), given)
    plant(monkeypatch)
    assert apart(given_by(family.ways(tiny(family), FEW)[direction], given), expected) > family.seen[direction] * CLOSE
