"""Folders whose weights are a variant, or are in several parts."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from remote_vae.errors import ModelLoadError
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec

STEM = "diffusion_pytorch_model"
PART = "20KB"  # of the tiny VAE there are several


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load(ModelSpec("mine", str(folder), recipe="sd3")).module.state_dict())


@pytest.fixture
def save(tiny_vae: AutoencoderKL, tmp_path: Path) -> Callable[..., Path]:
    """Saves the VAE as a variant, times a factor that tells which one was read."""

    def save_vae(variant: str | None, factor: float = 1.0, **options: str) -> Path:
        scaled = AutoencoderKL.from_config(tiny_vae.config)
        scaled.load_state_dict({name: factor * tensor for name, tensor in tiny_vae.state_dict().items()})
        scaled.save_pretrained(tmp_path, variant=variant, **options)
        return tmp_path

    return save_vae


def factor_of(folder: Path, vae: AutoencoderKL) -> float:
    name = "decoder.conv_in.weight"
    return round(float((weights_of(folder)[name] / vae.state_dict()[name]).mean()), 3)


@pytest.mark.parametrize("variant", ["fp16", "bf16", "fp32", "non_ema"])
@pytest.mark.parametrize("in_parts", [False, True])
def test_only_a_variant(
    save: Callable[..., Path],
    tiny_vae: AutoencoderKL,
    variant: str,
    in_parts: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A folder that has its weights as a variant alone is loaded, in several parts too, and a line says so."""
    folder = save(variant, **({"max_shard_size": PART} if in_parts else {}))
    assert (len(list(folder.glob("*.safetensors"))) > 1) is in_parts
    found, wanted = weights_of(folder), tiny_vae.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert f"model 'mine' has its weights as variant {variant} only" in capfd.readouterr().err


def test_parts_with_the_variant_at_the_end(save: Callable[..., Path], tiny_vae: AutoencoderKL) -> None:
    """Parts of older files, which name the variant after their number, are loaded."""
    folder = save("fp16", max_shard_size=PART)
    for path in folder.glob("*.safetensors"):
        number = path.stem.removeprefix(f"{STEM}.fp16")
        path.rename(folder / f"{STEM}{number}.fp16.safetensors")
    assert factor_of(folder, tiny_vae) == 1


@pytest.mark.parametrize(
    ("variants", "taken"),
    [
        (("fp16", None, "bf16"), 2),
        (("bf16", "fp16"), 2),
        (("fp16", "fp32"), 2),
        (("non_ema", "ema"), 2),
        (("non_ema", "bf16"), 2),
    ],
)
def test_which_variant(
    save: Callable[..., Path], tiny_vae: AutoencoderKL, variants: tuple[str | None, ...], taken: int
) -> None:
    """The plain weights are taken if there are any, otherwise the variant with the most digits, non_ema last."""
    for number, variant in enumerate(variants, 1):
        folder = save(variant, factor=number)
    assert factor_of(folder, tiny_vae) == taken


def test_a_plain_file_says_nothing(save: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    """Weights that are not a variant are loaded without a word, also if a variant lies beside them."""
    save("fp16")
    weights_of(save(None))
    assert capfd.readouterr().err == ""


def test_a_missing_part(save: Callable[..., Path]) -> None:
    """Weights of which a part is missing are refused with the number of parts."""
    folder = save("fp16", max_shard_size=PART)
    parts = sorted(folder.glob("*.safetensors"))
    parts[1].unlink()
    with pytest.raises(ModelLoadError, match=f"are in {len(parts)} parts, of which {len(parts) - 1} are there"):
        weights_of(folder)


def test_a_file_of_another_name(save: Callable[..., Path], tiny_vae: AutoencoderKL) -> None:
    """The one file of a folder is read whatever it is called; of several none is chosen."""
    folder = save(None)
    (folder / f"{STEM}.safetensors").rename(folder / "sdxl_vae.v2.safetensors")
    assert factor_of(folder, tiny_vae) == 1
    (folder / "another.safetensors").write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"several files of weights, another, sdxl_vae.v2; name one of them"):
        weights_of(folder)


def test_the_digest_is_that_of_what_is_read(save: Callable[..., Path]) -> None:
    """A digest is compared with the files that are read, and not with a variant beside them."""
    save("fp16")
    folder = save(None)
    digest = hashlib.sha256((folder / f"{STEM}.safetensors").read_bytes()).hexdigest()
    load(ModelSpec("mine", str(folder), recipe="sd3", sha256=digest))
