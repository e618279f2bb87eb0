"""Files whose recipe nobody names: recognised by the names and shapes of their tensors, and never guessed."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from remote_vae.errors import ConfigurationError, ModelLoadError
from remote_vae.models import recognise
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.files import Stored
from remote_vae.models.loader import load
from remote_vae.models.recognise import recipes_for_tensors
from remote_vae.models.spec import ModelSpec, parse_spec
from remote_vae.models.tensors import fit_tensors

ROWS = [name for name, model in MODELS.items() if model.config is not None and not model.embedded]


def shapes_of(name: str) -> dict[str, list[int]]:
    """The tensors of a model's true architecture, none of which is allocated."""
    model = MODELS[name]
    with torch.device("meta"):
        module = family_of(model).load_class()(**model.config)
    return {key: list(tensor.shape) for key, tensor in module.state_dict().items()}


def stored(shapes: dict[str, list[int]]) -> dict[str, Stored]:
    return {name: Stored(Path("file"), "F16", tuple(shape)) for name, shape in shapes.items()}


def sparse_file(path: Path, shapes: dict[str, list[int]]) -> Path:
    """A file with the true names and shapes, whose numbers are a hole and take no room on the disk."""
    entries, start = {}, 0
    for name, shape in shapes.items():
        end = start + 2 * int(torch.Size(shape).numel())
        entries[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
        start = end
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + start)
    return path


@pytest.mark.parametrize("name", ROWS)
def test_every_model_fits_its_own_tensors(name: str) -> None:
    """A file with the names and shapes of a model's architecture is a whole one, under a prefix too."""
    family, shapes = family_of(MODELS[name]), shapes_of(name)
    with torch.device("meta"):
        module = family.load_class()(**MODELS[name].config)
    assert fit_tensors(stored(shapes), module, family.convert).whole
    assert fit_tensors(stored({f"vae.{key}": shape for key, shape in shapes.items()}), module, family.convert).whole


def test_what_only_training_counts() -> None:
    """A file of FLUX.2 without the counter of its batch norm is whole, and one without its statistics is not."""
    family, shapes = family_of(MODELS["flux2"]), shapes_of("flux2")
    with torch.device("meta"):
        module = family.load_class()(**MODELS["flux2"].config)
    del shapes["bn.num_batches_tracked"]
    assert fit_tensors(stored(shapes), module, family.convert).whole
    del shapes["bn.running_var"]
    assert fit_tensors(stored(shapes), module, family.convert).missing == ("bn.running_var",)


@pytest.mark.parametrize("name", ["sd-x4-upscaler", "hunyuan-image-2.1"])
def test_one_recipe(name: str) -> None:
    """Tensors that one model alone has are recognised."""
    assert recipes_for_tensors(stored(shapes_of(name))) == (name,)


@pytest.mark.parametrize(
    ("name", "among"),
    [
        ("sdxl", {"sd1", "sdxl", "playground"}),
        ("flux1", {"sd3", "flux1"}),
        ("wan2.1", {"wan2.1", "qwen-image"}),
    ],
)
def test_several_recipes(name: str, among: set[str]) -> None:
    """Tensors that models with different factors or latents share give all of these."""
    assert among <= set(recipes_for_tensors(stored(shapes_of(name))))


def test_no_recipe() -> None:
    """Tensors of no known model give none."""
    assert recipes_for_tensors(stored({"unet.conv.weight": [3, 3]})) == ()


def test_a_class_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that lacks something in this process is no candidate, and keeps no other model from being one."""
    broken = replace(MODELS["kvae-2d"], config={"nonsense": 1})
    monkeypatch.setitem(MODELS, "kvae-2d", broken)
    assert recipes_for_tensors(stored(shapes_of("sd-x4-upscaler"))) == ("sd-x4-upscaler",)


@pytest.mark.alone
def test_a_file_without_a_recipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file that one recipe fits is served without naming the recipe, and a line says which one was taken."""
    shapes = {"first_stage_model." + name: shape for name, shape in shapes_of("sd-x4-upscaler").items()}
    file = sparse_file(tmp_path / "upscaler.safetensors", {"model.diffusion_model.out.weight": [2], **shapes})
    assert parse_spec(f"mine={file}").recipe == "sd-x4-upscaler"
    assert (
        capfd.readouterr().err
        == "remote-vae: model 'mine' has the tensors of recipe 'sd-x4-upscaler', which is taken\n"
    )


@pytest.fixture
def in_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recognises in this process, in which torch has been imported already."""
    monkeypatch.setattr(recognise, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count))


@pytest.mark.usefixtures("in_thread")
def test_a_file_that_several_recipes_fit(tmp_path: Path) -> None:
    """A file that several recipes fit is refused with their names, and served if one is named."""
    file = sparse_file(tmp_path / "vae.safetensors", shapes_of("sdxl"))
    with pytest.raises(ConfigurationError, match=r"fit several recipes; choose one with ,recipe=NAME: sd1, sdxl, "):
        parse_spec(f"mine={file}")
    assert parse_spec(f"mine={file},recipe=sdxl").recipe == "sdxl"
    assert parse_spec(f"sdxl={file}").recipe is None


@pytest.mark.usefixtures("in_thread")
def test_a_file_that_no_recipe_fits(tmp_path: Path) -> None:
    """A file of no known model is refused."""
    file = sparse_file(tmp_path / "unet.safetensors", {"conv.weight": [3, 3]})
    with pytest.raises(ConfigurationError, match=r"model 'mine' in '.*unet.safetensors' fit no known model"):
        parse_spec(f"mine={file}")


def test_what_is_no_file_of_weights(tmp_path: Path) -> None:
    """Without a recipe, too, a file that is no safetensors is refused for that."""
    (tmp_path / "page.safetensors").write_bytes(b"<html>")
    with pytest.raises(ModelLoadError, match="it is a web page"):
        parse_spec(f"mine={tmp_path}/page.safetensors")
    with pytest.raises(ModelLoadError, match="can run code"):
        parse_spec(f"mine={tmp_path}/model.ckpt")


def test_a_folder_without_a_recipe(tmp_path: Path) -> None:
    """A folder is recognised by the class in its config."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKLHunyuanImage"}')
    assert parse_spec(f"mine={tmp_path}").recipe == "hunyuan-image-2.1"
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL", "latent_channels": 16}')
    with pytest.raises(ConfigurationError, match=r"fit several recipes; .*flux1"):
        parse_spec(f"mine={tmp_path}")


def test_a_file_of_another_family(tmp_path: Path) -> None:
    """The refusal of a file of another family names the recipes that are for it."""
    file = sparse_file(tmp_path / "vae.safetensors", shapes_of("sd-x4-upscaler"))
    why = "they hold no VAE of recipe 'taesd': .* tensors are missing .*; recipes for them: sd-x4-upscaler$"
    with pytest.raises(ModelLoadError, match=why):
        load(ModelSpec("mine", str(file), recipe="taesd"))
