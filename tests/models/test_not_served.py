"""What is not served is refused with the reason, and a name that is nearly right with the right one."""

import json
import re
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
from diffusers.pipelines.ltx2 import vocoder

from remote_vae.errors import ConfigurationError, ModelLoadError
from remote_vae.models.families import ALIASES, FAMILIES, MODELS, find_recipe
from remote_vae.models.families.not_served import NOT_SERVED, NotServed
from remote_vae.models.fast_import import open_model
from remote_vae.models.spec import ModelSpec, parse_spec

NEAR = {
    "wan2.1-vae": "wan2.1",
    "sd-1.5": "sd1",
    "SD_XL": "sdxl",
    "qwenimage": "qwen-image",
    "qwen_image_vae": "qwen-image",
    "flux2-vae": "flux2",
    "flux-1": "flux1",
    "hunyuanvideo-2": "hunyuanvideo",
    "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers": "sana-sprint",
    "stabillity-cascade": "stable-cascade",
}


def names() -> list[tuple[str, NotServed]]:
    return [(name, one) for one in NOT_SERVED for name in one.names]


@pytest.mark.parametrize(("name", "known"), names(), ids=[name for name, _ in names()])
def test_a_name_gives_the_reason(name: str, known: NotServed) -> None:
    """As a model or as a recipe, in any case, it gives what it is, why it is not served, and what to do."""
    for text in (name, name.upper(), f"mine=owner/name,recipe={name}"):
        with pytest.raises(ConfigurationError, match=re.escape(str(known))):
            parse_spec(text)


@pytest.mark.parametrize("cls", [cls for one in NOT_SERVED for cls in one.classes])
def test_a_class_gives_the_reason(cls: str, tmp_path: Path) -> None:
    """A folder of such weights gives the reason, with a recipe or without, and its weights are not read."""
    [known] = [one for one in NOT_SERVED if cls in one.classes]
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": cls}))
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"unread")
    with pytest.raises(ModelLoadError, match=f"holds a {cls}: {re.escape(str(known))}"):
        open_model(ModelSpec("mine", str(tmp_path), recipe="sd1", device="cpu").to_json())
    with pytest.raises(ModelLoadError, match=f"holds a {cls}: {re.escape(str(known))}"):
        parse_spec(f"mine={tmp_path}")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            {"_class_name": "VQModel", "lookup_from_codebook": True, "latent_channels": 64},
            "numbers of codebook entries",
        ),
        ({"_class_name": "Mine", "auto_map": {"AutoModel": "mine.Mine"}}, "code that comes with weights is not run"),
    ],
)
def test_a_mark_gives_the_reason(config: dict[str, object], reason: str, tmp_path: Path) -> None:
    """A config that asks for tokens or for code gives the reason, whatever its class."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=reason):
        open_model(ModelSpec("mine", str(tmp_path), recipe="movq", device="cpu").to_json())


def test_nothing_is_served_and_not_served() -> None:
    """No name or class of the table is one that is served, and its classes are classes of diffusers."""
    assert not {name for name, _ in names()} & {*MODELS, *ALIASES}
    classes = {cls for one in NOT_SERVED for cls in one.classes}
    assert not classes & {family.cls for family in FAMILIES}
    assert [cls for cls in classes if not hasattr(diffusers, cls) and not hasattr(vocoder, cls)] == []


@pytest.mark.parametrize("name", NEAR)
def test_a_name_that_is_nearly_right(name: str) -> None:
    """It is answered with the names that may have been meant, the likeliest first."""
    with pytest.raises(ConfigurationError, match=re.escape(f"did you mean {NEAR[name]}")):
        parse_spec(name)
    with pytest.raises(ConfigurationError, match=re.escape(f"did you mean {NEAR[name]}")):
        find_recipe(name)


def test_before_any_import() -> None:
    """The reason comes before torch or diffusers is imported."""
    program = """
import sys
from remote_vae.errors import ConfigurationError
from remote_vae.models.spec import parse_spec
try:
    parse_spec("seedvr2")
except ConfigurationError as error:
    print("diffusers" in sys.modules, "torch" in sys.modules, error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.stdout.startswith("False False model 'seedvr2' is not in the registry: the VAE of SeedVR2"), (
        ended.stderr
    )
