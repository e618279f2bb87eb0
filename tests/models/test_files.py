"""Single files as people have them: the VAE's tensors are found among others, and what is no VAE is refused."""

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from remote_vae.errors import ModelLoadError
from remote_vae.models import tensors
from remote_vae.models.family import Weights
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec

LoadFile = Callable[[Weights], Weights]

BESIDE = {
    "model.diffusion_model.out.2.weight": torch.ones(4),
    "cond_stage_model.transformer.encoder.layers.0.weight": torch.ones(4),
    "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.weight": torch.ones(4),
}


def assert_same(found: Weights, wanted: Weights) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model.", "model.", "module.", "model.first_stage_model."])
@pytest.mark.parametrize("alone", [True, False])
def test_prefixes(load_file: LoadFile, tiny_weights: Weights, prefix: str, alone: bool) -> None:
    """Whatever stands before the VAE's names is taken off, in the VAE's own file and in that of a pipeline."""
    found = {prefix + name: tensor for name, tensor in tiny_weights.items()}
    assert_same(load_file(found if alone else {**BESIDE, **found}), tiny_weights)


def test_only_the_vae_is_read(load_file: LoadFile, tiny_weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file with a whole pipeline no other tensor than the VAE's is read."""
    read = []

    class Spy:
        def __init__(self, *args: Any, **options: Any) -> None:
            self._file = opened(*args, **options)

        def __enter__(self) -> "Spy":
            self._file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self._file.__exit__(*error)

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            tensor: torch.Tensor = self._file.get_tensor(name)
            return tensor

    opened = tensors.safe_open
    monkeypatch.setattr(tensors, "safe_open", Spy)
    load_file({**BESIDE, **{f"vae.{name}": tensor for name, tensor in tiny_weights.items()}})
    assert sorted(read) == sorted(f"vae.{name}" for name in tiny_weights)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_leftovers_of_training(load_file: LoadFile, tiny_weights: Weights, prefix: str) -> None:
    """A loss, a discriminator, moving averages and an optimizer beside the weights are left out."""
    left = ("loss.logvar", "loss.perceptual_loss.lin0.weight", "discriminator.main.0.weight", "optimizer.state")
    averages = {f"model_ema.{name.replace('.', '')}": torch.zeros_like(value) for name, value in tiny_weights.items()}
    found = {**tiny_weights, **dict.fromkeys(left, torch.ones(1)), **averages}
    assert_same(load_file({prefix + name: tensor.clone() for name, tensor in found.items()}), tiny_weights)


def test_a_moving_average_beside_the_weights(load_file: LoadFile, tiny_weights: Weights) -> None:
    """Of a VAE and its moving average the VAE is taken, in whichever order they are in the file."""
    averages = {f"ema.{name}": torch.zeros_like(tensor) for name, tensor in tiny_weights.items()}
    assert_same(load_file({**averages, **{f"model.{n}": tensor for n, tensor in tiny_weights.items()}}), tiny_weights)


OLD = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))


@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize("prefix", ["", "vae."])
def test_old_names_of_attention(load_file: LoadFile, tiny_weights: Weights, convolutions: bool, prefix: str) -> None:
    """Files that diffusers saved before it renamed its layers of attention are loaded, also with 1x1 convolutions."""
    found = {}
    for name, tensor in tiny_weights.items():
        old = name
        for today, before in OLD:
            old = old.replace(f"attentions.0.{today}.", f"attentions.0.{before}.")
        as_convolution = convolutions and old != name and tensor.ndim == 2
        found[prefix + old] = tensor[:, :, None, None] if as_convolution else tensor
    assert_same(load_file(found), tiny_weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_precision(load_file: LoadFile, tiny_weights: Weights, dtype: torch.dtype) -> None:
    """Files of other precisions give the numbers that they hold."""
    found = {name: tensor.to(dtype) for name, tensor in tiny_weights.items()}
    assert_same(load_file(found), {name: tensor.float() for name, tensor in found.items()})


HALVES = {
    "encoder alone": (("encoder.", "quant_conv."), "they are encoder alone.*: 70 tensors are missing .decoder"),
    "decoder alone": (("decoder.", "post_quant_conv."), "they are decoder alone.*: 54 tensors are missing .encoder"),
    "nothing": (("nothing",), "they hold no VAE of recipe 'sd3': 124 tensors are missing"),
    "no convolutions": (("encoder.", "decoder."), "of another architecture: 4 tensors are missing .quant_conv"),
}


@pytest.mark.parametrize("name", HALVES)
def test_what_is_not_a_whole_vae(load_file: LoadFile, tiny_weights: Weights, name: str) -> None:
    """A half, or a file from which the VAE was left out, is refused in one sentence that says so."""
    kept, why = HALVES[name]
    found = {f"vae.{key}": tensor for key, tensor in tiny_weights.items() if key.startswith(kept)}
    with pytest.raises(ModelLoadError, match=why) as caught:
        load_file({**BESIDE, **found})
    assert "\n" not in str(caught.value)


def test_a_tensor_of_another_shape(load_file: LoadFile, tiny_weights: Weights) -> None:
    """A tensor of another shape is refused with both shapes, even if it has as many numbers."""
    turned = {**tiny_weights, "decoder.conv_in.weight": tiny_weights["decoder.conv_in.weight"].transpose(0, 1)}
    why = re.escape("decoder.conv_in.weight has the shape [4, 16, 3, 3] and not [16, 4, 3, 3]")
    with pytest.raises(ModelLoadError, match=why):
        load_file(turned)


def zipped() -> bytes:
    whole = BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({}))
    return whole.getvalue()


def header(document: object, data: bytes = b"") -> bytes:
    text = json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 334643268\n"
IMPOSTORS = {
    "a pickle": (pickle.dumps({"a": 1}), "pickle with another name, which can run code"),
    "a zipped pickle": (zipped(), "pickle with another name, which can run code"),
    "a pointer of Git LFS": (LFS, "pointer of Git LFS.*git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html><html>Log in</html>", "it is a web page"),
    "an error message": (b'{"error": "unauthorized"}', "it is JSON text"),
    "a GGUF file": (b"GGUF\x03\0\0\0" + bytes(64), "it is a GGUF file"),
    "zeros": (bytes(1000), "it is no safetensors file"),
    "an empty file": (b"", "it is empty"),
    "a few bytes": (b"\x10", "it is no safetensors file"),
    "half a header": (header({"a": ENTRY}, bytes(8))[:20], "it is truncated: 20 bytes of at least 69"),
    "half of the tensors": (header({"a": ENTRY}, bytes(4)), "it is truncated: 73 bytes of at least 77 are there"),
    "a header of another kind": (header([1, 2]), "it is no safetensors file"),
    "an entry of another kind": (header({"a": {"dtype": "F32"}}), "its header cannot be read"),
    "a deep header": (b"\x00\x20\0\0\0\0\0\0{" + b'"a":{' * 1638 + b"}", "its header cannot be read"),
}


@pytest.mark.parametrize("name", IMPOSTORS)
@pytest.mark.parametrize("in_folder", [True, False])
def test_what_is_not_safetensors(tmp_path: Path, name: str, in_folder: bool) -> None:
    """A file with the ending of safetensors that is something else is refused, and the sentence says what it is."""
    data, why = IMPOSTORS[name]
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.write_bytes(data)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL", "scaling_factor": 0.5}')
    with pytest.raises(ModelLoadError, match=f"'{re.escape(str(file))}' cannot be loaded: .*{why}") as caught:
        load(ModelSpec("mine", str(tmp_path if in_folder else file), recipe="sd1"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ae.sft", "VAE.SAFETENSORS", "a.b.Safetensors"])
def test_other_endings(
    load_file: LoadFile, tiny_weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The short ending of safetensors, and capital letters in an ending, name a file too."""
    load_file(tiny_weights)
    (tmp_path / "file.safetensors").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert_same(dict(load(ModelSpec("mine", name, recipe="sd3")).module.state_dict()), tiny_weights)
    with pytest.raises(ModelLoadError, match="can run code"):
        load(ModelSpec("mine", "VAE.CKPT", recipe="sd3"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """A file that is not there is refused by its path."""
    with pytest.raises(
        ModelLoadError, match=r"nowhere.safetensors' cannot be loaded: it cannot be opened .No such file"
    ):
        load(ModelSpec("mine", str(tmp_path / "nowhere.safetensors"), recipe="sd1"))
