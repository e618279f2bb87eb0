"""Configs that state no factors: those of the recipe are taken, and not the class's own, which are another model's."""

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL, AutoencoderKLWan

from remote_vae.errors import ModelLoadError
from remote_vae.models.families import MODELS
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec

TINY: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
}
FACTORS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


def folder_with(place: Path, channels: int, **stated: object) -> str:
    """A tiny VAE with a config that states these factors alone."""
    AutoencoderKL(**TINY, latent_channels=channels).save_pretrained(place)
    config = json.loads((place / "config.json").read_text())
    kept = {name: value for name, value in config.items() if name not in FACTORS}
    (place / "config.json").write_text(json.dumps({**kept, **stated}))
    return str(place)


def constants(source: str, recipe: str) -> tuple[object, ...]:
    found = load(ModelSpec("mine", source, recipe=recipe)).info.constants
    return tuple(getattr(found, name) for name in FACTORS)


@pytest.mark.parametrize(
    ("recipe", "channels", "scaling", "shift"),
    [
        ("sd1", 4, 0.18215, None),
        ("sdxl", 4, 0.13025, None),
        ("sd3", 16, 1.5305, 0.0609),
        ("flux1", 16, 0.3611, 0.1159),
        ("flux-dev", 16, 0.3611, 0.1159),
        ("cogview4", 16, 1.0, 0.0),
        ("bria3.2", 4, 0.13025, 0.0),
    ],
)
@pytest.mark.parametrize("empty", [{}, dict.fromkeys(FACTORS)])
def test_lacking_factors(
    tmp_path: Path,
    recipe: str,
    channels: int,
    scaling: float,
    shift: float | None,
    empty: dict[str, None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A config without factors, or with null for each, gets those of the recipe's model, and one line says so."""
    assert constants(folder_with(tmp_path, channels, **empty), recipe) == (scaling, shift, None, None)
    said = capfd.readouterr().err
    assert said.startswith(f"remote-vae: model 'mine' states no factors in its config; {recipe}'s are taken: ")
    assert f"scaling_factor {scaling}" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("recipe", "stated"),
    [
        ("sdxl", {"scaling_factor": 0.31}),
        ("sd3", {"scaling_factor": 0.31}),
        ("flux1", {"scaling_factor": 0.31, "shift_factor": 0.7}),
    ],
)
def test_stated_factors_stay(
    tmp_path: Path, recipe: str, stated: dict[str, float], capfd: pytest.CaptureFixture[str]
) -> None:
    """A config that states its factor keeps it, and gets no shift of another model; nothing is said."""
    found = constants(folder_with(tmp_path, 16 if recipe != "sdxl" else 4, **stated), recipe)
    assert found == (stated["scaling_factor"], stated.get("shift_factor"), None, None)
    assert capfd.readouterr().err == ""


def test_means_and_deviations(tmp_path: Path) -> None:
    """Means and deviations are factors too: a Wan 2.2 folder without them does not get those of Wan 2.1."""
    known = MODELS["wan2.2-5b"].config
    assert known is not None
    tiny = {"base_dim": 8, "decoder_base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    AutoencoderKLWan(**{**known, **tiny}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    kept = {name: value for name, value in config.items() if name not in FACTORS}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    assert constants(str(tmp_path), "wan2.2-5b")[2:] == (known["latents_mean"], known["latents_std"])


def test_playground(tmp_path: Path) -> None:
    """Of models with the same recipe the factors are those of the one that was named."""
    found = constants(folder_with(tmp_path, 4), "playground")
    assert found[0] == 0.5
    assert found[2] == (-1.6574, 1.886, -1.383, 2.5155)


def test_factors_do_not_hide_other_weights(tmp_path: Path) -> None:
    """Weights with other channels stay refused, whatever factors their config lacks."""
    with pytest.raises(ModelLoadError, match="for 4 latent channels, and these weights have 16"):
        constants(folder_with(tmp_path, 16), "sdxl")
