"""Weights from folders and files: what is loaded is what was saved, and what cannot be trusted is refused."""

import hashlib
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import load_file, save_file

from remote_vae.errors import ModelLoadError
from remote_vae.models.families import MODELS, family_of, find_recipe
from remote_vae.models.families.flux2 import statistics
from remote_vae.models.family import Model
from remote_vae.models.fast_import import open_model
from remote_vae.models.loader import load
from remote_vae.models.spec import ModelSpec, parse_spec

TINY: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 2,
    "scaling_factor": 0.31,
    "shift_factor": 0.17,
}
FLUX2: dict[str, Any] = {name: value for name, value in TINY.items() if not name.endswith("_factor")}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def module() -> AutoencoderKL:
    torch.manual_seed(2)
    return AutoencoderKL(**TINY, latent_channels=4).eval()


@pytest.fixture
def folder(module: AutoencoderKL, tmp_path: Path) -> Path:
    module.save_pretrained(tmp_path / "pipeline" / "vae")
    return tmp_path / "pipeline" / "vae"


@pytest.fixture
def tiny_row(monkeypatch: pytest.MonkeyPatch) -> Model:
    """sd3 with the tiny architecture, since a single file does not say its own."""
    row = Model("sd3", find_recipe("sd3"), "some/where", "float16", config={**TINY, "latent_channels": 4})
    monkeypatch.setitem(MODELS, "sd3", row)
    return row


def weights_of(source: Path, **options: Any) -> dict[str, torch.Tensor]:
    return dict(load(ModelSpec("mine", str(source), recipe="sd3", **options)).module.state_dict())


def assert_same(found: dict[str, torch.Tensor], module: torch.nn.Module) -> None:
    wanted = module.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_folders(module: AutoencoderKL, folder: Path) -> None:
    """A VAE's folder, a pipeline's folder and a pipeline's folder with its subfolder give the same weights."""
    for found in (weights_of(folder), weights_of(folder.parent), weights_of(folder.parent, subfolder="vae")):
        assert_same(found, module)


def test_facts_come_from_the_model(folder: Path) -> None:
    """The facts are those of the folder's own config, not those of the name it is served under."""
    vae, recipe = open_model(parse_spec(f"flux1={folder},recipe=sd3").to_json())
    assert (vae.info.constants.scaling_factor, vae.info.constants.shift_factor) == (0.31, 0.17)
    assert (vae.info.latent_channels, vae.info.spatial_compression_ratio, vae.info.source) == (4, 8, "vae")
    assert recipe.name == "sd3"


def test_a_file_with_diffusers_names(module: AutoencoderKL, folder: Path, tiny_row: Model) -> None:
    """A single file with diffusers' names is loaded into its row's architecture."""
    assert_same(weights_of(folder / WEIGHTS), module)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("quant", [True, False])
def test_a_file_with_the_original_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, quant: bool
) -> None:
    """A single file with the names of the original code, alone or in a whole checkpoint, is loaded; the rest is not."""
    torch.manual_seed(3)
    config = {**TINY, "latent_channels": 4, "use_quant_conv": quant, "use_post_quant_conv": quant}
    module = AutoencoderKL(**config)
    row = Model("sd3", find_recipe("sd3"), "some/where", "float16", config=config)
    monkeypatch.setitem(MODELS, "sd3", row)
    original = {prefix + name: tensor for name, tensor in to_original(module.state_dict()).items()}
    if prefix:
        original["model.diffusion_model.out.weight"] = torch.zeros(3)
    save_file(original, tmp_path / "original.safetensors")
    assert_same(weights_of(tmp_path / "original.safetensors"), module)


def test_a_file_with_the_original_names_of_flux2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single file with the names of FLUX.2's own code is loaded with its statistics, the small decoder's too."""
    config = {**FLUX2, "decoder_block_out_channels": (4, 4, 8, 8)}
    torch.manual_seed(4)
    module = AutoencoderKLFlux2(**config)
    module.bn.running_mean.uniform_(-1, 1)
    row = Model("flux2-small-decoder", find_recipe("flux2"), "some/where", "bfloat16", config=config)
    monkeypatch.setitem(MODELS, row.name, row)
    inside = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
    original = {
        f"{inside.get(layer, layer)}.{rest}": tensor
        for name, tensor in to_original(module.state_dict()).items()
        for layer, _, rest in [name.partition(".")]
    }
    save_file(original, tmp_path / "original.safetensors")
    vae = load(ModelSpec("mine", str(tmp_path / "original.safetensors"), recipe=row.name))
    assert_same(dict(vae.module.state_dict()), module)


LEVELS = (
    ("down_blocks.{0}.resnets.", "down.{0}.block."),
    ("down_blocks.{0}.downsamplers.0.", "down.{0}.downsample."),
    ("up_blocks.{0}.resnets.", "up.{1}.block."),
    ("up_blocks.{0}.upsamplers.0.", "up.{1}.upsample."),
)
NAMES = (
    *((ours.format(n, 3 - n), theirs.format(n, 3 - n)) for n in range(4) for ours, theirs in LEVELS),
    ("mid_block.resnets.0.", "mid.block_1."),
    ("mid_block.resnets.1.", "mid.block_2."),
    ("mid_block.attentions.0.group_norm.", "mid.attn_1.norm."),
    ("mid_block.attentions.0.to_q.", "mid.attn_1.q."),
    ("mid_block.attentions.0.to_k.", "mid.attn_1.k."),
    ("mid_block.attentions.0.to_v.", "mid.attn_1.v."),
    ("mid_block.attentions.0.to_out.0.", "mid.attn_1.proj_out."),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)


@pytest.mark.parametrize("name", ["wan2.1", "qwen-image"])
def test_a_file_with_the_original_names_of_wan(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with the names of Wan's own code is loaded; files of Qwen-Image have the same names."""
    check_names_of_wan(name, {"base_dim": 8}, OF_WAN, tmp_path, monkeypatch)


def test_a_file_with_the_original_names_of_wan_22(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with the names of Wan 2.2's own code, whose levels hold their blocks, is loaded."""
    config = {**MODELS["wan2.2-5b"].config, "base_dim": 8, "decoder_base_dim": 12}
    original = check_names_of_wan("wan2.2-5b", config, OF_WAN_22, tmp_path, monkeypatch)
    assert {
        "encoder.downsamples.1.downsamples.0.shortcut.weight",
        "encoder.downsamples.1.downsamples.2.time_conv.bias",
        "decoder.upsamples.0.upsamples.0.residual.2.weight",
        "decoder.upsamples.2.upsamples.3.resample.1.weight",
        "decoder.middle.1.to_qkv.weight",
        "decoder.head.0.gamma",
        "conv2.bias",
    } <= original


def check_names_of_wan(
    name: str, config: dict[str, Any], names: tuple[tuple[str, Any], ...], folder: Path, patch: pytest.MonkeyPatch
) -> set[str]:
    """A module is written with the original names and loaded; gives those names."""
    row = replace(MODELS[name], config=config)
    patch.setitem(MODELS, name, row)
    module = family_of(row).load_class()(**row.config)
    state = module.state_dict()
    original = {reduce(lambda text, pair: re.sub(*pair, text), names, key): value for key, value in state.items()}
    assert len(original) == len(state)
    assert not original.keys() & state.keys()
    save_file(original, folder / "wan.safetensors")
    found = load(ModelSpec("mine", str(folder / "wan.safetensors"), recipe=name)).module
    assert_same(dict(found.state_dict()), module)
    return set(original)


# Names of diffusers, and what they are in Wan's own code, which counts an upsampling layer with its three blocks.
_OF_BOTH_WANS: tuple[tuple[str, Any], ...] = (
    (r"^quant_conv", "conv1"),
    (r"^post_quant_conv", "conv2"),
    (r"^(\w+)\.conv_in", r"\1.conv1"),
    (r"\.norm_out", ".head.0"),
    (r"\.conv_out", ".head.2"),
    (r"\.norm1", ".residual.0"),
    (r"(resnets\.\d|down_blocks\.\d+)\.conv1", r"\1.residual.2"),
    (r"\.norm2", ".residual.3"),
    (r"(resnets\.\d|down_blocks\.\d+)\.conv2", r"\1.residual.6"),
    (r"\.conv_shortcut", ".shortcut"),
    (r"mid_block\.resnets\.0", "middle.0"),
    (r"mid_block\.attentions\.0", "middle.1"),
    (r"mid_block\.resnets\.1", "middle.2"),
)
OF_WAN = (
    *_OF_BOTH_WANS,
    (r"down_blocks", "downsamples"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda match: f"upsamples.{4 * int(match[1]) + int(match[2])}"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda match: f"upsamples.{4 * int(match[1]) + 3}"),
)
OF_WAN_22 = (
    *_OF_BOTH_WANS,
    (r"down_blocks\.(\d)\.resnets", r"downsamples.\1.downsamples"),
    (r"down_blocks\.(\d)\.downsampler", r"downsamples.\1.downsamples.2"),  # after two blocks
    (r"up_blocks\.(\d)\.resnets", r"upsamples.\1.upsamples"),
    (r"up_blocks\.(\d)\.upsampler", r"upsamples.\1.upsamples.3"),  # after three
)


def to_original(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' names -> those of the latent diffusion code, which counts the decoder's levels from the picture."""
    found = {}
    for name, tensor in state.items():
        original = reduce(lambda text, pair: text.replace(*pair), NAMES, name)
        found[original] = tensor[:, :, None, None].clone() if "attn_1" in original and tensor.ndim == 2 else tensor
    return found


Harm = Callable[[Path], Path]


def with_pickle(folder: Path) -> Path:
    (folder / WEIGHTS).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))
    return folder


def as_file(suffix: str) -> Harm:
    def harm(folder: Path) -> Path:
        (folder / f"model{suffix}").write_bytes(pickle.dumps({}))
        return folder / f"model{suffix}"

    return harm


def with_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Harm:
    def harm(folder: Path) -> Path:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS)
        return folder

    return harm


def with_config(**changes: object) -> Harm:
    def harm(folder: Path) -> Path:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return folder

    return harm


def with_bytes(name: str, data: bytes) -> Harm:
    def harm(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder

    return harm


def truncated(folder: Path) -> Path:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    return folder


KEY = "decoder.conv_in.weight"
HARMS: dict[str, tuple[Harm, str]] = {
    "a folder with a pickle only": (with_pickle, "can run code"),
    "a .ckpt file": (as_file(".ckpt"), "can run code"),
    "a .pt file": (as_file(".pt"), "can run code"),
    "a .bin file": (as_file(".bin"), "can run code"),
    "a tensor too few": (with_weights(lambda weights: weights.pop(KEY)), f"1 tensors are missing .{KEY}"),
    "a tensor too many": (with_weights(lambda weights: weights.update(extra=torch.zeros(1))), "1 are unknown .extra"),
    "a tensor of another shape": (with_weights(lambda weights: weights.update({KEY: torch.zeros(1)})), KEY),
    "a tensor with NaN": (
        with_weights(lambda weights: weights[KEY].fill_(torch.nan)),
        f"NaN or .* in {KEY}",
    ),
    "half a file": (truncated, "cannot be loaded"),
    "no safetensors": (with_bytes(WEIGHTS, b"\x80\x04not safetensors"), "cannot be loaded"),
    "an empty file": (with_bytes(WEIGHTS, b""), "cannot be loaded"),
    "another class": (with_config(_class_name="UNet2DConditionModel"), "holds a UNet2DConditionModel"),
    "a class of its own code": (with_config(_class_name="Mine", auto_map={"AutoModel": "mine.Mine"}), "holds a Mine"),
    "a config that is no JSON": (with_bytes("config.json", b"{"), "not a JSON object"),
    "a config that is a list": (with_bytes("config.json", b"[]"), "not a JSON object"),
    "a folder that is not there": (lambda folder: folder / "nowhere", "no config.json"),
}


@pytest.mark.parametrize("name", HARMS)
def test_refusals(folder: Path, name: str) -> None:
    """A folder or file that is not what it should be is refused in one sentence that says why."""
    harm, why = HARMS[name]
    with pytest.raises(ModelLoadError, match=why) as caught:
        load(ModelSpec("mine", str(harm(folder)), recipe="sd3"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("single", [False, True])
def test_digests(folder: Path, tiny_row: Model, single: bool) -> None:
    """Weights with the digest that was asked for are loaded; one bit that is another is refused, naming the place."""
    file = folder / WEIGHTS
    source, data = file if single else folder, bytearray(file.read_bytes())
    digest = hashlib.sha256(data).hexdigest()
    load(ModelSpec("mine", str(source), recipe="sd3", sha256=digest.upper()))
    data[-5] ^= 1
    file.write_bytes(data)
    load(ModelSpec("mine", str(source), recipe="sd3"))
    with pytest.raises(ModelLoadError, match=f"'{source}' have sha256 .*, not {digest}"):
        load(ModelSpec("mine", str(source), recipe="sd3", sha256=digest))


@pytest.mark.parametrize("known_by", ["a file beside it", "its name in the hub's cache"])
def test_known_digests(folder: Path, known_by: str, tmp_path: Path) -> None:
    """Weights whose digest stands beside them, or is their name in a cache, are refused when one bit has changed."""
    file = folder / WEIGHTS
    data = bytearray(file.read_bytes())
    digest = hashlib.sha256(data).hexdigest()
    if known_by == "a file beside it":
        file.with_name(file.name + ".sha256").write_text(f"{digest}  {file.name}\n")
    else:
        blob = tmp_path / digest
        file.rename(blob)
        file.symlink_to(blob)
    load(ModelSpec("mine", str(folder), recipe="sd3"))
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelLoadError, match=f"{WEIGHTS}' have sha256 .*, not {digest}"):
        load(ModelSpec("mine", str(folder), recipe="sd3"))


def test_a_digest_that_is_none(folder: Path) -> None:
    """An empty file where a digest should be is no reason to believe the weights."""
    (folder / f"{WEIGHTS}.sha256").write_text("")
    with pytest.raises(ModelLoadError, match="have sha256 "):
        load(ModelSpec("mine", str(folder), recipe="sd3"))


def test_the_embedded_models_digest_is_known() -> None:
    """The embedded weights are those that the package says they are, so that a changed bit is refused at the start."""
    weights = resources.files("remote_vae.models") / "demo" / WEIGHTS
    known = (resources.files("remote_vae.models") / "demo" / f"{WEIGHTS}.sha256").read_text()
    assert known == f"{hashlib.sha256(weights.read_bytes()).hexdigest()}  {WEIGHTS}\n"


@pytest.mark.parametrize("name", ["a tensor too few", "a tensor too many", "a tensor of another shape", "half a file"])
def test_refusals_of_single_files(folder: Path, tiny_row: Model, name: str) -> None:
    """A single file is judged as a folder is."""
    harm, why = HARMS[name]
    with pytest.raises(ModelLoadError, match=why):
        load(ModelSpec("mine", str(harm(folder) / WEIGHTS), recipe="sd3"))


def test_code_beside_the_weights_is_left_alone(folder: Path) -> None:
    """A Python file that comes with a model is not run, whatever its config says."""
    (folder / "mine.py").write_text("raise SystemExit('this must not run')")
    load(ModelSpec("mine", str(with_config(auto_map={"AutoModel": "mine.Mine"})(folder)), recipe="sd3"))


def test_a_pickle_beside_the_weights_is_not_opened(module: AutoencoderKL, folder: Path) -> None:
    """Where both are there the safetensors are read, and the pickle could hold anything."""
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"anything")
    assert_same(weights_of(folder), module)


def test_an_unnamed_architecture(folder: Path) -> None:
    """A single file under a recipe that is no model's name is refused, for its architecture cannot be known."""
    with pytest.raises(ModelLoadError, match="architecture"):
        load(ModelSpec("demo", str(folder / WEIGHTS)))


def test_weights_that_are_published_as_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose weights have no folder on the Hub is refused without a file; the message says where the file is."""
    address = "https://example.org/small.safetensors"
    monkeypatch.setitem(MODELS, "sd3", Model("sd3", find_recipe("sd3"), None, "float16", file=address))
    with pytest.raises(ModelLoadError, match=f"'sd3' are published as a file, at {address}.*sd3=FILE.safetensors"):
        load(ModelSpec("sd3"))


def test_random_weights_are_the_same_every_time(tiny_row: Model) -> None:
    """Random weights are seeded, and drawing them leaves the caller's own randomness alone."""
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second = (load(ModelSpec("sd3", random_weights=True)) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(dict(first.module.state_dict()), second.module)
    assert float(first.module.state_dict()[KEY].std()) > 0
    assert first.info.source == "random weights"


@pytest.fixture
def flux2(tmp_path: Path) -> AutoencoderKLFlux2:
    """Tiny, with statistics of its own, and saved in `tmp_path`."""
    torch.manual_seed(4)
    config = {name: value for name, value in TINY.items() if name not in ("scaling_factor", "shift_factor")}
    module = AutoencoderKLFlux2(**config, latent_channels=8).eval()
    module.bn.running_mean.uniform_(-1, 1)
    module.bn.running_var.uniform_(0.3, 3)
    module.save_pretrained(tmp_path / "flux2")
    return module


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_statistics_of_the_weights(flux2: AutoencoderKLFlux2, tmp_path: Path, dtype: str) -> None:
    """FLUX.2's statistics are those of the weights to the last bit of float32, whatever the layers compute in."""
    vae = load(ModelSpec("mine", str(tmp_path / "flux2"), recipe="flux2", device="cpu", dtype=dtype))
    assert vae.info.dtype == dtype
    assert vae.info.constants.latents_mean == tuple(flux2.bn.running_mean.tolist())
    expected = (flux2.bn.running_var.double() + flux2.config.batch_norm_eps).sqrt()
    assert vae.info.constants.latents_std == tuple(expected.tolist())


def test_statistics_on_a_device_without_double_precision() -> None:
    """Statistics that lie on Apple's GPU come to the CPU before they are widened."""

    class Apples:
        def __init__(self, values: list[float]) -> None:
            self._values = values

        def cpu(self) -> torch.Tensor:
            return torch.tensor(self._values)

        def tolist(self) -> list[float]:
            return self._values

        def double(self) -> torch.Tensor:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    norm = SimpleNamespace(running_var=Apples([3.0]), running_mean=Apples([2.0]), eps=1.0)
    assert statistics(SimpleNamespace(bn=norm)) == ((2.0,), (2.0,))


@pytest.mark.parametrize("recipe", ["sd3", "sdxl", "flux1", "taef1"])
def test_a_recipe_of_another_vae(flux2: AutoencoderKLFlux2, folder: Path, tmp_path: Path, recipe: str) -> None:
    """FLUX.2's weights under another recipe, and others under its own, would give a wrong picture, and are refused."""
    with pytest.raises(ModelLoadError, match=rf"AutoencoderKLFlux2.*recipe '{recipe}'.*flux2, flux2-klein"):
        load(ModelSpec("mine", str(tmp_path / "flux2"), recipe=recipe, device="cpu"))
    with pytest.raises(ModelLoadError, match=r"AutoencoderKL, .*recipe 'flux2'"):
        load(ModelSpec("mine", str(folder), recipe="flux2", device="cpu"))


def test_every_class_can_be_loaded(tmp_path: Path) -> None:
    """A preview's folder is loaded by its own class, which has no posterior."""
    tiny: ModelMixin = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    tiny.save_pretrained(tmp_path)
    vae = load(ModelSpec("taesd", str(tmp_path)))
    assert isinstance(vae.module, AutoencoderTiny)
    assert vae.info.deterministic
    assert vae.info.spatial_compression_ratio == 8


def test_an_absent_device(folder: Path) -> None:
    """A device that is not there is refused by name."""
    with pytest.raises(ModelLoadError, match="nosuch"):
        load(ModelSpec("mine", str(folder), recipe="sd3", device="nosuch"))
