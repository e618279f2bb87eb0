"""Weights under a recipe that is not theirs: refused from config.json alone, with the recipes that are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from remote_vae.errors import ModelLoadError
from remote_vae.models.families import recipes_for
from remote_vae.models.fast_import import open_model
from remote_vae.models.spec import ModelSpec

STATISTICS = {"latents_mean": [0.1] * 4, "latents_std": [1.5] * 4}
CONFIGS: dict[str, dict[str, object]] = {
    "sd1": {
        "_class_name": "AutoencoderKL",
        "latent_channels": 4,
        "scaling_factor": 0.18215,
        "shift_factor": None,
        "block_out_channels": [128, 256, 512, 512],
    },
    "upscaler": {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [128, 256, 512]},
    "playground": {"_class_name": "AutoencoderKL", "latent_channels": 4, "scaling_factor": 0.5, **STATISTICS},
    "flux1": {"_class_name": "AutoencoderKL", "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
    "glm": {"_class_name": "AutoencoderKL", "latent_channels": 16, "latents_mean": [0.1] * 16, "latents_std": [2] * 16},
    "flux2": {"_class_name": "AutoencoderKLFlux2", "latent_channels": 32},
    "tiny": {"_class_name": "AutoencoderTiny", "latent_channels": 4, "scaling_factor": 1.0, "shift_factor": 0.0},
    "qwen": {"_class_name": "AutoencoderKLQwenImage", "z_dim": 16, "latents_mean": [0.1] * 16, "latents_std": [2] * 16},
    "wan": {"_class_name": "AutoencoderKLWan", "z_dim": 12},
    "layered": {"_class_name": "AutoencoderKLQwenImage", "z_dim": 16, "input_channels": 4},
    "new": {"_class_name": "AutoencoderKLQwenImage21", "z_dim": 64, "in_channels": 4, "out_channels": 4},
    "sana": {"_class_name": "AutoencoderDC", "latent_channels": 32, "scaling_factor": 0.41407},
    "movq": {"_class_name": "VQModel", "latent_channels": 4, "scaling_factor": 0.18215, "norm_type": "spatial"},
    "vq": {"_class_name": "VQModel", "latent_channels": 3, "block_out_channels": [128, 256, 512]},
    "asymmetric": {"_class_name": "AsymmetricAutoencoderKL", "latent_channels": 4, "scaling_factor": 0.18215},
    "video": {"_class_name": "AutoencoderKLHunyuanVideo", "latent_channels": 16, "scaling_factor": 0.476986},
}
WRONG = [
    ("wan", "wan2.1", "for 16 latent channels, and these weights have 12; .*: none$"),
    ("sd1", "taesd", "AutoencoderKL, .*'taesd'.* for AutoencoderTiny; recipes for these weights: sd1,"),
    ("sd1", "sd-x4-upscaler", "for 4 pixels to a side of a latent cell, and these weights have 8; .*: sd1,"),
    ("sd1", "hunyuanvideo", "for AutoencoderKLHunyuanVideo; .*: sd1,"),
    ("playground", "sd1", "does not use the latents_mean and latents_std .*: sdxl$"),
    ("playground", "flux1", "does not use the latents_mean and latents_std .*: sdxl$"),
    ("flux1", "sd1", "does not use the shift_factor .*: sd3, flux1$"),
    ("glm", "sdxl", "for 4 latent channels, and these weights have 16; .*: glm-image$"),
    ("glm", "flux1", "does not use the latents_mean and latents_std"),
    ("flux1", "glm-image", "needs latents_mean and latents_std, which .*: sd3, flux1$"),
    ("flux2", "flux1", "for AutoencoderKL; .*: flux2, flux2-klein, ideogram4, fibo2, ernie-image$"),
    ("flux2", "bria3.2", "for AutoencoderKL; .*: flux2,"),
    ("sd1", "ernie-image", "for AutoencoderKLFlux2; .*: sd1,"),
    ("upscaler", "fibo2", "for AutoencoderKLFlux2; .*: sd1, .*sd-x4-upscaler$"),
    ("tiny", "sd1", "AutoencoderTiny, .*'sd1'.* for AutoencoderKL; .*: taesd, taesdxl$"),
    ("tiny", "taef1", "for 16 latent channels, and these weights have 4; .*: taesd, taesdxl$"),
    ("qwen", "qwen-image-layered", "for pictures of 4 channels, and those of these weights have 3; .*: qwen-image, qw"),
    ("layered", "qwen-image", "for pictures of 3 channels, and those .* have 4; .*: qwen-image-layered$"),
    ("new", "qwen-image", "for AutoencoderKLQwenImage; .*: qwen-image-2.1$"),
    ("sana", "sd1", "for AutoencoderKL; .*: sana$"),
    ("sd1", "movq", "for VQModel; .*: sd1,"),
    ("movq", "ldm-super-resolution", "for 3 latent channels, and these weights have 4; .*: movq$"),
    ("vq", "movq", "for 4 latent channels, and these weights have 3; .*: ldm-super-resolution$"),
    ("asymmetric", "sd1", "for AutoencoderKL; .*: asymmetric$"),
    ("video", "sd1", "for AutoencoderKL; .*: hunyuanvideo"),
]


def folder_of(place: Path, name: str) -> str:
    """A folder whose weights are not even safetensors: it must not come to their being read."""
    (place / "config.json").write_text(json.dumps(CONFIGS[name]))
    (place / "diffusion_pytorch_model.safetensors").write_bytes(b"unread")
    return str(place)


@pytest.mark.parametrize(("weights", "recipe", "why"), WRONG)
def test_a_wrong_recipe_is_refused(weights: str, recipe: str, why: str, tmp_path: Path) -> None:
    """A recipe that would give a wrong picture is refused with what it is for and which recipes are right."""
    with pytest.raises(ModelLoadError, match=why) as caught:
        open_model(ModelSpec("mine", folder_of(tmp_path, weights), recipe=recipe, device="cpu").to_json())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("weights", "recipe"), [("sd1", "flux1"), ("sd1", "sdxl"), ("flux1", "sd3")])
def test_a_recipe_with_the_same_pixels_is_not_refused(weights: str, recipe: str, tmp_path: Path) -> None:
    """A recipe of the same class that uses every constant of the weights gives the right pixels."""
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        open_model(ModelSpec("mine", folder_of(tmp_path, weights), recipe=recipe, device="cpu").to_json())


def test_random_weights_are_judged_too() -> None:
    """A model without weights is refused under a recipe that is not for its architecture."""
    with pytest.raises(ModelLoadError, match=r"for AutoencoderTiny; .*: sd1"):
        open_model(ModelSpec("sd1", recipe="taesd", random_weights=True, device="cpu").to_json())


@pytest.mark.parametrize("weights", CONFIGS)
def test_what_is_proposed_is_not_refused(weights: str, tmp_path: Path) -> None:
    """Every recipe that is proposed for weights is one under which they are loaded."""
    source = folder_of(tmp_path, weights)
    for recipe in recipes_for(CONFIGS[weights]):
        with pytest.raises(ModelLoadError, match="cannot be loaded"):
            open_model(ModelSpec("mine", source, recipe=recipe, device="cpu").to_json())


PROGRAM = """
import sys
from remote_vae.errors import ModelLoadError
from remote_vae.models.fast_import import open_model
from remote_vae.models.spec import ModelSpec
try:
    open_model(ModelSpec("mine", sys.argv[1], recipe="taesd", device="cpu").to_json())
except ModelLoadError as error:
    print("diffusers" in sys.modules, "torch" in sys.modules, error)
"""


def test_before_any_import(tmp_path: Path) -> None:
    """What config.json tells is told before diffusers or torch is imported."""
    source = folder_of(tmp_path, "sd1")
    ended = subprocess.run([sys.executable, "-c", PROGRAM, source], capture_output=True, text=True, check=False)
    assert ended.stdout.startswith("False False the weights in"), ended.stderr
