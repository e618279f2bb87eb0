"""Latents of each family as ComfyUI keeps them, through the nodes, against the pipeline's own decode and encode.

A sampler of ComfyUI works on normalised latents; what it hands out went through `process_out` of the family's format.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch

from numerics.cases.case import by_channel, decoded, mode
from numerics.cases.frames import tiny_svd
from numerics.cases.ltx import TIMESTEPS, tiny_ltx
from numerics.cases.minimax import CASES as MINIMAX
from numerics.cases.minimax import pixels as minimax_pixels
from numerics.cases.minimax import tiny_minimax
from numerics.cases.qwen_image_rgba import TINY_21
from numerics.conftest import TINY, TINY_VIDEO, WAN_22, Families, serve, tiny_wan
from remote_vae.errors import InvalidValue, LatentMismatch

from .running import execute, load, noise

Formula = Callable[[Any, torch.Tensor], torch.Tensor]


def raw(module: Any, z: torch.Tensor) -> torch.Tensor:
    """`process_out` of formats with statistics or a factor, to the decoder's own input."""
    config = module.config
    if hasattr(config, "latents_mean"):
        return by_channel(module, z)
    return z / config.scaling_factor


def kept(module: Any, z: torch.Tensor) -> torch.Tensor:
    """`process_out` of FLUX.2's and LTX's formats, whose VAEs have the statistics in their weights."""
    return z


def from_patches(module: Any, z: torch.Tensor) -> torch.Tensor:
    """As Flux2Pipeline: the batch norm's statistics, then patches to cells."""
    mean, var = (values.view(1, -1, 1, 1) for values in (module.bn.running_mean, module.bn.running_var))
    z = z * (var + module.config.batch_norm_eps).sqrt() + mean
    batch, channels, height, width = z.shape
    z = z.view(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return z.reshape(batch, channels // 4, 2 * height, 2 * width)


def from_buffers(module: Any, z: torch.Tensor) -> torch.Tensor:
    """As LTXPipeline, by buffers."""
    mean, std = (values.view(1, -1, 1, 1, 1) for values in (module.latents_mean, module.latents_std))
    return z * std + mean


def tiny_flux2() -> Any:
    module = diffusers.AutoencoderKLFlux2(**TINY, latent_channels=8)
    module.bn.running_mean.uniform_(-1, 1)
    module.bn.running_var.uniform_(0.3, 3)
    return module


@dataclass(frozen=True)
class Comfy:
    """A module, its recipe, the shape of a latent in ComfyUI, what is sampled, and what the decoder takes of it."""

    recipe: str
    module: Callable[[], Any]
    latent: tuple[int, ...]
    process_out: Formula = raw
    to_decoder: Formula = raw
    decode: Formula = decoded
    encode: Formula = mode


CASES = {
    "wan": Comfy("wan2.1", tiny_wan, (2, 16, 3, 4, 6)),
    "wan22": Comfy("wan2.2-5b", lambda: tiny_wan(**WAN_22), (1, 48, 2, 2, 3)),
    "hunyuan": Comfy(
        "hunyuanvideo",
        lambda: diffusers.AutoencoderKLHunyuanVideo(**TINY_VIDEO, latent_channels=16, scaling_factor=0.47),
        (2, 16, 2, 4, 6),
    ),
    "ltx": Comfy("ltx", lambda: tiny_ltx(scaling_factor=1.0), (2, 128, 2, 2, 3), kept, from_buffers),
    "h3": Comfy(
        "minimax-h3",
        tiny_minimax,
        (1, 24, 7, 2, 3),
        kept,
        by_channel,
        minimax_pixels,
        lambda module, x: MINIMAX["minimax-h3"].encode(module, x).half().float(),  # as its pipelines round it
    ),
    "qwen": Comfy("qwen-image", lambda: tiny_wan(diffusers.AutoencoderKLQwenImage), (2, 16, 1, 4, 6)),
    "flux2": Comfy("flux2", tiny_flux2, (2, 32, 3, 5), kept, from_patches),
    "klein": Comfy("flux2-klein", tiny_flux2, (2, 32, 3, 5), kept, from_patches),
}
OTHERS = {
    "ltx-timestep": Comfy("ltx", lambda: tiny_ltx(**{**TIMESTEPS, "scaling_factor": 1.0}), (1, 128, 2, 2, 3)),
    "svd": Comfy("svd", tiny_svd, (3, 4, 4, 6)),
    "rgba": Comfy("qwen-image-2.1", lambda: diffusers.AutoencoderKLQwenImage21(**TINY_21), (1, 64, 2, 3)),
}


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Families]:
    torch.manual_seed(19)
    every = {**CASES, **OTHERS}
    modules = {name: case.module().eval() for name, case in every.items()}
    recipes = {name: case.recipe for name, case in every.items()}
    with serve(modules, recipes, tmp_path_factory.mktemp("comfy")) as found:
        yield found


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return load("custom_nodes_remote_vae_families")


def shown(pixels: torch.Tensor) -> torch.Tensor:
    """[B,P,...] in [-1, 1] as an IMAGE, frames one after another."""
    found = ((pixels + 1) / 2).clamp(0, 1).movedim(1, -1)
    return found.reshape(-1, *found.shape[-3:])


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_what_a_sampler_hands_out(module: ModuleType, comfy: Families, name: str) -> None:
    """A sampler's latent of each family becomes the IMAGE of the pipeline's own decode, in floats and in eight bits."""
    case, vae = CASES[name], comfy.modules[name]
    z = noise(*case.latent)
    expected = shown(case.decode(vae, case.to_decoder(vae, z)))
    assert float(expected.std()) > 0.02, "the picture must have something to compare"
    inputs = {"samples": {"samples": case.process_out(vae, z)}, "url": comfy.url, "model": name}
    (found,) = execute(module, "RemoteVAEDecode", **inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    if case.latent[2:3] > (1,) and len(case.latent) == 5:
        (levels,) = execute(module, "RemoteVAEDecodeVideo", **inputs)
        torch.testing.assert_close(levels, expected, atol=0.5 / 255 + 1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_what_a_sampler_starts_from(module: ModuleType, comfy: Families, name: str) -> None:
    """An encoded IMAGE is the latent of the posterior's mode in the layout and scaling of the family's format."""
    case, vae = CASES[name], comfy.modules[name]
    is_video = len(case.latent) == 5 and case.latent[2] > 1
    (loaded,) = execute(module, "RemoteVAELoader", url=comfy.url, model=name)
    side = loaded.spacial_compression_encode()
    frames = loaded.upscale_ratio[0](2) if is_video else 1
    pixels = torch.rand((2 * frames, 2 * side, 4 * side, 3), generator=torch.Generator().manual_seed(8))
    inputs = {"pixels": pixels, "url": comfy.url, "model": name}
    (found,) = execute(module, "RemoteVAEEncode", **inputs, **({"frames": frames} if is_video else {}))
    given = pixels.unflatten(0, (2, frames)).movedim(-1, 1) * 2 - 1
    given = given if len(case.latent) == 5 else given[:, :, 0]
    latent = torch.cat([case.encode(vae, video) for video in given.split(1)])
    # What a sampler is given decodes to what the encoder saw: the format's way back, then the pipeline's way there.
    there = found["samples"] if case.process_out is raw else case.to_decoder(vae, found["samples"])
    assert found["samples"].shape[1] == case.latent[1] == loaded.latent_channels
    torch.testing.assert_close(there, latent, atol=1e-5, rtol=1e-5)
    if is_video and name not in ("hunyuan", "h3"):  # their encoders take any number of frames
        (one,) = execute(module, "RemoteVAEEncode", **{**inputs, "pixels": pixels[: frames + 2]})
        assert one["samples"].shape == (1, *found["samples"].shape[1:]), "frames beyond the last group are dropped"
        torch.testing.assert_close(one["samples"], found["samples"][:1], atol=1e-5, rtol=1e-5)


def test_a_batch_that_is_no_whole_number_of_videos(module: ModuleType, comfy: Families) -> None:
    """Pictures left over are refused, with the numbers."""
    with pytest.raises(InvalidValue, match=r"has 7 pictures; expected a multiple of frames=5"):
        execute(module, "RemoteVAEEncode", pixels=torch.zeros(7, 32, 32, 3), url=comfy.url, model="wan", frames=5)


@torch.no_grad()
def test_pictures_on_an_axis_of_frames(module: ModuleType, comfy: Families) -> None:
    """A latent of several pictures on the axis of frames, as layers are, becomes one picture for each."""
    vae, z = comfy.modules["qwen"], noise(1, 16, 3, 4, 6)
    (found,) = execute(module, "RemoteVAEDecode", samples={"samples": z}, url=comfy.url, model="qwen")
    expected = torch.cat([shown(vae.decode(z[:, :, index : index + 1]).sample) for index in range(3)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_decoder_that_takes_a_timestep(module: ModuleType, comfy: Families) -> None:
    """Noise and timestep are those of ComfyUI's VAE of LTX-Video, which mixes them into the normalised latent."""
    vae, z = comfy.modules["ltx-timestep"], noise(1, 128, 2, 2, 3)
    mixed = 0.975 * z + 0.025 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    expected = shown(vae.decode(from_buffers(vae, mixed), torch.full((1,), 0.05)).sample)
    (found,) = execute(module, "RemoteVAEDecode", samples={"samples": z}, url=comfy.url, model="ltx-timestep")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_batch_of_frames(module: ModuleType, comfy: Families) -> None:
    """The latents of Stable Video Diffusion are a batch of frames there, which its decoder mixes; both ways."""
    vae, z = comfy.modules["svd"], noise(3, 4, 4, 6)
    inputs = {"url": comfy.url, "model": "svd"}
    (found,) = execute(module, "RemoteVAEDecode", samples={"samples": z}, **inputs)
    torch.testing.assert_close(found, shown(vae.decode(z, num_frames=3).sample), atol=1e-5, rtol=0)
    (latent,) = execute(module, "RemoteVAEEncode", pixels=found, **inputs)
    expected = vae.encode(found.movedim(-1, 1) * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(latent["samples"], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_transparency(module: ModuleType, comfy: Families) -> None:
    """A VAE of four channels gives them, and an IMAGE without transparency is opaque to it."""
    vae, z = comfy.modules["rgba"], noise(1, 64, 2, 3)
    (loaded,) = execute(module, "RemoteVAELoader", url=comfy.url, model="rgba")
    found = loaded.decode(z)
    torch.testing.assert_close(found, shown(vae.decode(z.unsqueeze(2)).sample), atol=1e-5, rtol=0)
    pixels = torch.rand((1, 32, 64, 3), generator=torch.Generator().manual_seed(8))
    opaque = torch.nn.functional.pad(pixels * 2 - 1, (0, 1), value=1.0).movedim(-1, 1).unsqueeze(2)
    expected = vae.encode(opaque).latent_dist.mode()[:, :, 0]
    torch.testing.assert_close(loaded.encode(pixels), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("flux2", (1, 8, 4, 4), r"'flux2' takes 32 channels, \[B,32,h,w\]"),
        ("wan", (1, 16, 4, 4), r"'wan' takes 16 channels, \[B,16,f,h,w\]"),
        ("qwen", (1, 4, 4, 4), r"'qwen' takes 16 channels, \[B,16,f,h,w\]"),
    ],
)
def test_a_latent_of_another_format(
    module: ModuleType, comfy: Families, name: str, shape: tuple[int, ...], expected: str
) -> None:
    """It is refused with the layout that the family has in ComfyUI."""
    with pytest.raises(LatentMismatch, match=expected):
        execute(module, "RemoteVAEDecode", samples={"samples": noise(*shape)}, url=comfy.url, model=name)


def test_a_vae_whose_latents_comfyui_keeps_otherwise(module: ModuleType, comfy: Families) -> None:
    """Cosmos 1.0, Ideogram's order of channels and previews of VAEs that normalise are refused when they load."""
    nodes = sys.modules["custom_nodes_remote_vae_families.nodes"]
    changes: tuple[dict[str, Any], ...] = (
        {"config": {"_class_name": "AutoencoderKLCosmos"}},
        {"latent_layouts": ["b (h w) (i j c)"]},
        {"recipe": "taeh3"},
    )
    for change in changes:
        remote = nodes.open_model(comfy.url, "flux2", "")
        remote.card |= change
        with pytest.raises(LatentMismatch, match=r"'flux2' are kept in another way"):
            nodes.RemoteComfyVAE(remote)
