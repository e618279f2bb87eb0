"""Weights in float8: widened when they are loaded, multiplied by their scales, or refused."""

from collections.abc import Callable

import pytest
import torch

from remote_vae.errors import ModelLoadError
from remote_vae.models.family import Weights

LoadFile = Callable[[Weights], Weights]
FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@pytest.mark.parametrize("kind", FLOAT8)
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_float8(
    load_file: LoadFile, tiny_weights: Weights, kind: str, prefix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Float8 weights give exactly the numbers that they hold, and a line says so when the model starts."""
    stored = {name: tensor.to(FLOAT8[kind]) for name, tensor in tiny_weights.items()}
    found = load_file({prefix + name: tensor for name, tensor in stored.items()})
    assert all(torch.equal(found[name], stored[name].float()) for name in stored)
    assert all(tensor.dtype is torch.float32 for tensor in found.values())
    said = capfd.readouterr().err
    assert said.startswith(f"remote-vae: model 'mine' has weights in float8_{kind}")
    assert said.count("\n") == 1


def test_other_precisions_say_nothing(
    load_file: LoadFile, tiny_weights: Weights, capfd: pytest.CaptureFixture[str]
) -> None:
    """Weights in float16 are loaded without a word."""
    load_file({name: tensor.half() for name, tensor in tiny_weights.items()})
    assert capfd.readouterr().err == ""


def scaled(weights: Weights, kind: str, shape: str, word: str) -> tuple[Weights, Weights]:
    """A file with scaled float8 weights, and what it stands for; the rest stays in float32, as such files have it."""
    stored, wanted = {}, dict(weights)
    for name, tensor in weights.items():
        if not name.endswith(".weight") or tensor.ndim < 2:
            stored[name] = tensor
            continue
        rows = tensor.abs().flatten(1).amax(1) / 100
        scale = {"number": rows.amax(), "one": rows.amax()[None], "rows": rows, "column": rows[:, None]}[shape]
        by_row = scale.flatten().expand(len(tensor)).reshape(-1, *(1,) * (tensor.ndim - 1))
        stored[name] = (tensor / by_row).to(FLOAT8[kind])
        stored[name.removesuffix("weight") + word] = scale
        wanted[name] = stored[name].float() * by_row
    return stored, wanted


@pytest.mark.parametrize("kind", FLOAT8)
@pytest.mark.parametrize("shape", ["number", "one", "rows", "column"])
@pytest.mark.parametrize("word", ["scale_weight", "weight_scale"])
def test_scales(
    load_file: LoadFile, tiny_weights: Weights, kind: str, shape: str, word: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Scaled float8 weights are multiplied by their scales: one number for a tensor, or one for each of its rows."""
    stored, wanted = scaled(tiny_weights, kind, shape, word)
    notes = {
        "scaled_fp8": torch.zeros(2).to(FLOAT8[kind]),
        "decoder.conv_in.scale_input": torch.ones(()),
        "decoder.conv_out.comfy_quant": torch.frombuffer(bytearray(b"{}"), dtype=torch.uint8),
    }
    found = load_file({f"vae.{name}": tensor for name, tensor in {**stored, **notes}.items()})
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert "multiplied by their scales" in capfd.readouterr().err


NAME = "decoder.conv_in.weight"
SCALE = "decoder.conv_in.scale_weight"


def without_a_scale(file: Weights) -> None:
    del file[SCALE]


def by_blocks(file: Weights) -> None:
    file[SCALE] = torch.ones(4, 2)


def for_too_many_rows(file: Weights) -> None:
    file[SCALE] = torch.ones(7)


def with_integer_scales(file: Weights) -> None:
    file[SCALE] = torch.ones((), dtype=torch.uint8)


def as_integers(file: Weights) -> None:
    file[NAME] = torch.ones(file[NAME].shape, dtype=torch.int8)


def as_plain_integers(file: Weights) -> None:
    as_integers(file)
    without_a_scale(file)


def packed(file: Weights) -> None:
    file[NAME] = file[NAME].view(torch.uint8).flatten(1)[:, ::2]


def in_half_precision(file: Weights) -> None:
    file[NAME] = file[NAME].half()


UNREADABLE = {
    without_a_scale: f"of the scaled float8 weights 1 have no scale .{NAME}",
    by_blocks: rf"the scales of {NAME} have the shape \[4, 2\].*those of blocks cannot",
    for_too_many_rows: rf"the scales of {NAME} have the shape \[7\]",
    with_integer_scales: f"the scales of {NAME} .*stored as uint8",
    as_integers: f"{NAME} is stored as int8 with a scale, which cannot be read",
    as_plain_integers: f"{NAME} is stored as int8, which cannot be read",
    packed: f"{NAME} has the shape",
    in_half_precision: f"{NAME} is stored as float16 with a scale, which cannot be read",
}


@pytest.mark.parametrize("harm", UNREADABLE, ids=lambda harm: harm.__name__)
def test_what_would_give_a_wrong_picture(
    load_file: LoadFile, tiny_weights: Weights, harm: Callable[[Weights], None]
) -> None:
    """Quantised weights that cannot be read as what they stand for are refused, with the name of the tensor."""
    stored, _ = scaled(tiny_weights, "e4m3", "number", "scale_weight")
    harm(stored)
    with pytest.raises(ModelLoadError, match=UNREADABLE[harm]) as caught:
        load_file(stored)
    assert "\n" not in str(caught.value)


def test_a_marker_without_scales(load_file: LoadFile, tiny_weights: Weights) -> None:
    """A file that says that it is scaled and has no scales is refused."""
    stored = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tiny_weights.items()}
    with pytest.raises(ModelLoadError, match="have no scale"):
        load_file({**stored, "scaled_fp8": torch.zeros(0).to(torch.float8_e4m3fn)})


def test_numbers_that_float8_does_not_have(load_file: LoadFile, tiny_weights: Weights) -> None:
    """A float8 weight that was too large for its format is NaN, and is refused."""
    stored = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tiny_weights.items()}
    stored[NAME] = torch.full_like(tiny_weights[NAME], torch.nan).to(torch.float8_e4m3fn)
    with pytest.raises(ModelLoadError, match=f"NaN or infinity, in {NAME}"):
        load_file(stored)
