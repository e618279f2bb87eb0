"""Which precision a model runs in, and what happens to a decode that overflows it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLMiniMaxH3

from remote_vae.core import filters
from remote_vae.core.decode import decode
from remote_vae.core.encode import encode
from remote_vae.core.layout import fit_latent
from remote_vae.errors import NonFiniteOutput
from remote_vae.models.families import find_model, find_recipe
from remote_vae.models.fast_import import open_model
from remote_vae.models.loader import load, resolve_dtype
from remote_vae.models.spec import ModelSpec
from remote_vae.models.vae import DiffusersVAE
from remote_vae.values import Output, Posterior, Scaling, ScalingMode

from ..numerics.cases.minimax import tiny_minimax

TINY: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "scaling_factor": 0.31,
}
FIT = {"model": "test", "height": None, "width": None}
OVERFLOWS = 1e5  # beyond float16's 65504, well within bfloat16's and float32's range


@pytest.mark.parametrize(
    ("name", "asked", "force_upcast", "expected"),
    [
        ("sd1", None, True, torch.float16),
        ("sdxl", None, True, torch.float32),
        ("kolors", "float16", True, torch.float32),
        ("sdxl", None, False, torch.float16),
        ("sdxl", "bfloat16", True, torch.bfloat16),
        ("playground", None, True, torch.float32),
        ("sd3", None, False, torch.float16),
        ("flux1", None, False, torch.bfloat16),
        ("hunyuanvideo", None, False, torch.float16),
        ("flux1", "float32", False, torch.float32),
    ],
)
def test_policy_on_a_gpu(
    name: str, asked: str | None, force_upcast: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a family runs in its own precision or the one asked for; SDXL's float16 weights in float32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    spec = ModelSpec(name, dtype=asked)
    assert resolve_dtype(spec, find_model(name), torch.device("cuda"), force_upcast=force_upcast) is expected


@pytest.mark.parametrize(("asked", "expected"), [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_card_without_bfloat16(asked: str | None, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that does not multiply bfloat16 runs models in bfloat16 in float32, unless bfloat16 is asked for."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    spec, card = ModelSpec("flux1", dtype=asked), torch.device("cuda")
    assert resolve_dtype(spec, find_model("flux1"), card, force_upcast=False) is expected


@pytest.mark.parametrize("name", ["sd1", "flux1", "demo"])
def test_policy_on_a_cpu(name: str) -> None:
    """On a CPU a model runs in float32 unless something else is asked for."""
    row, cpu = find_model(name), torch.device("cpu")
    assert resolve_dtype(ModelSpec(name), row, cpu, force_upcast=False) is torch.float32
    assert resolve_dtype(ModelSpec(name, dtype="bfloat16"), row, cpu, force_upcast=False) is torch.bfloat16


def save(folder: Path, *, force_upcast: bool, overflow: str = "", factor: float = OVERFLOWS) -> Path:
    """A tiny model whose `overflow` part adds a number that is out of float16's range, and takes it off again."""
    torch.manual_seed(6)
    module = AutoencoderKL(**TINY, latent_channels=4, force_upcast=force_upcast)
    if overflow:
        part = module.decoder if overflow == "decoder" else module.encoder
        with torch.no_grad():
            part.conv_in.weight.mul_(factor)
    module.save_pretrained(folder)
    return folder


def test_a_recipe_brings_its_familys_policy(tmp_path: Path) -> None:
    """A folder served under a name of the user's own follows the precision policy of its recipe's family."""
    folder = save(tmp_path, force_upcast=True)
    as_sdxl = load(ModelSpec("mine", str(folder), recipe="sdxl", dtype="float16"))
    as_sd = load(ModelSpec("mine", str(folder), recipe="sd1", dtype="float16"))
    assert (as_sdxl.info.dtype, as_sd.info.dtype) == ("float32", "float16")


def run(vae: DiffusersVAE) -> Any:
    latent, recipe = torch.randn((1, 4, 6, 8), generator=torch.Generator().manual_seed(1)), find_recipe("sd1")
    fit = fit_latent(recipe, vae.info, tuple(latent.shape), **FIT)
    return decode(vae, recipe, latent, fit=fit, scaling=Scaling(ScalingMode.MODEL), output=Output.RAW)


def test_an_overflowing_decode_is_redone(tmp_path: Path) -> None:
    """A decode that overflows float16 is redone in float32 and says so, and the model is left in float16."""
    folder = save(tmp_path, force_upcast=False, overflow="decoder")
    vae = load(ModelSpec("mine", str(folder), recipe="sd1", dtype="float16"))
    done = run(vae)
    assert (done.dtype, vae.dtype) == (torch.float32, torch.float16)
    assert "redone in float32" in done.note
    assert torch.isfinite(done.tensor).all()
    exact = run(load(ModelSpec("mine", str(folder), recipe="sd1", dtype="float32")))
    assert exact.note == ""
    torch.testing.assert_close(done.tensor, exact.tensor, atol=0.05, rtol=0)


def test_a_decode_within_range_is_not_redone(tmp_path: Path) -> None:
    """A decode that stays finite in float16 runs in float16 and has no note."""
    done = run(load(ModelSpec("mine", str(save(tmp_path, force_upcast=False)), recipe="sd1", dtype="float16")))
    assert (done.dtype, done.note, done.tensor.dtype) == (torch.float16, "", torch.float16)


def test_an_overflowing_encode_is_redone(tmp_path: Path) -> None:
    """An encode that overflows float16 is redone in float32 and says so."""
    folder = save(tmp_path, force_upcast=False, overflow="encoder")
    vae = load(ModelSpec("mine", str(folder), recipe="sd1", dtype="float16"))
    image = torch.rand((1, 3, 48, 64), generator=torch.Generator().manual_seed(1))
    done = encode(vae, find_recipe("sd1"), image, scaling=Scaling(ScalingMode.MODEL), posterior=Posterior.MODE)
    assert (done.dtype, vae.dtype) == (torch.float32, torch.float16)
    assert "redone in float32" in done.note
    assert torch.isfinite(done.tensor).all()


def test_a_failed_retry_changes_nothing(tmp_path: Path) -> None:
    """If memory runs out while the weights become float32, every one of them stays what it was, and so do the bits."""
    folder = save(tmp_path, force_upcast=False, overflow="decoder")
    vae = load(ModelSpec("mine", str(folder), recipe="sd1", dtype="float16"))
    kept = {name: value.clone() for name, value in vae.module.state_dict().items()}
    latent = torch.full((1, 4, 6, 8), 1e-3, dtype=torch.float16)  # so small that nothing overflows
    before = vae.decode(latent)
    converted = vae.module.decoder.mid_block._apply

    def poor(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("none left")

    vae.module.decoder.mid_block._apply = poor
    with pytest.raises(torch.OutOfMemoryError):
        run(vae)
    vae.module.decoder.mid_block._apply = converted
    assert {value.dtype for value in vae.module.state_dict().values()} == {torch.float16}
    assert all(torch.equal(kept[name], value) for name, value in vae.module.state_dict().items())
    assert torch.equal(vae.decode(latent), before)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_not_even_float32_can_decode_fails(tmp_path: Path, dtype: str) -> None:
    """A picture that is not finite in float32 either is an error and never a picture."""
    vae = load(ModelSpec("mine", str(save(tmp_path, force_upcast=False)), recipe="sd1", dtype=dtype))
    with torch.no_grad():
        vae.module.decoder.conv_out.bias.fill_(float("inf"))
    with pytest.raises(NonFiniteOutput, match="float32"):
        run(vae)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("name", "dtype"), [("taesd", "bfloat16"), ("taesd", None), ("demo", "bfloat16")])
def test_slow_precisions_are_said(
    name: str, dtype: str | None, fast: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that only diffusers runs, in 16 bits on a CPU that has none, is said to be slow; no other is."""
    monkeypatch.setattr(filters, "_multiplies", lambda dtype: fast)
    open_model(ModelSpec(name, device="cpu", dtype=dtype, random_weights=name != "demo").to_json())
    said = capsys.readouterr().err
    slow = (name, dtype, fast) == ("taesd", "bfloat16", False)
    assert ("model 'taesd' will be slow" in said) is slow
    assert slow or not said


def test_layers_that_stay_in_float32(tmp_path: Path) -> None:
    """MiniMax-H3 keeps those layers in float32 that diffusers keeps in bfloat16, and decodes to the same."""
    torch.manual_seed(2)
    tiny_minimax().save_pretrained(tmp_path)
    ours = load(ModelSpec("mine", str(tmp_path), recipe="minimax-h3", dtype="bfloat16")).module
    theirs = AutoencoderKLMiniMaxH3.from_pretrained(tmp_path, torch_dtype=torch.bfloat16).eval()
    kept = {name: tensor.dtype for name, tensor in theirs.state_dict().items()}
    assert set(kept.values()) == {torch.float32, torch.bfloat16}
    assert {name: tensor.dtype for name, tensor in ours.state_dict().items()} == kept
    latent = torch.randn((1, 24, 3, 2, 3), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(ours.decode(latent).sample, theirs.decode(latent).sample)
