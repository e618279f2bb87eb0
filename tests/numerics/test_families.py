"""Each family against the formula of its pipeline in diffusers: tiny modules, with factors and statistics of their own.

The formulas are written with view and permute, as the pipelines have them, and not as recipes have them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from remote_vae.core.decode import decode
from remote_vae.core.encode import encode
from remote_vae.core.layout import example_shape, fit_latent
from remote_vae.core.recipe import Recipe
from remote_vae.engine.pool import Served
from remote_vae.errors import DeadlineExceeded, InvalidImage
from remote_vae.models.families import FAMILIES
from remote_vae.models.fast_import import open_model
from remote_vae.models.spec import ModelSpec
from remote_vae.models.vae import DiffusersVAE
from remote_vae.protocol.messages import EncodeRequest
from remote_vae.protocol.options import ENCODE_ROWS, complete
from remote_vae.server.adapt import encode_job
from remote_vae.server.settings import Settings
from remote_vae.values import FORMATS, Output, Posterior, Scaling, ScalingMode, Tensor

from .conftest import WAN_22, tiny_wan

OWN = Scaling(ScalingMode.MODEL)
BLOCKS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
Formula = Callable[[Any, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """`inputs` makes the decoder's input of a latent, `latent` a latent of the encoder's mean.

    `latents` are shapes of one picture of `size`, height and width in pixels, in the layouts of the family's pipelines.
    """

    module: Callable[[], Any]
    latents: tuple[tuple[int, ...], ...]
    size: tuple[int, int]
    inputs: Formula
    latent: Formula
    frames: int | None = None
    one_frame: bool = False  # pictures are videos of one frame to the module


def per_channel(values: Any, z: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(values).view(1, -1, *[1] * (z.ndim - 2))


def kl(**config: Any) -> Callable[[], Any]:
    return lambda: diffusers.AutoencoderKL(**{**BLOCKS, "latent_channels": 4, **config})


def flux2() -> Any:
    return diffusers.AutoencoderKLFlux2(**BLOCKS, latent_channels=8)


def patches(cells: torch.Tensor) -> torch.Tensor:
    """[B,C,h,w] -> [B,4C,h/2,w/2], as Flux2Pipeline._patchify_latents."""
    b, c, h, w = cells.shape
    return cells.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


def cells(patches: torch.Tensor) -> torch.Tensor:
    """[B,4C,h,w] -> [B,C,2h,2w], as Flux2Pipeline._unpatchify_latents."""
    b, c, h, w = patches.shape
    return patches.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)


def unpacked(z: torch.Tensor) -> torch.Tensor:
    """As QwenImagePipeline._unpack_latents, for 2 by 3 patches; other layouts get the axis of one frame."""
    if z.ndim == 3:
        return z.view(1, 2, 3, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 16, 1, 4, 6)
    return z if z.ndim == 5 else z.unsqueeze(2)


def by_channel(module: Any, z: torch.Tensor, *, inverse: bool = False) -> torch.Tensor:
    """As WanPipeline has it: [B,C,f,h,w] or [C,f,h,w] -> [B,C,f,h,w]."""
    z = z if z.ndim == 5 else z[None]
    mean, std = (per_channel(values, z) for values in (module.config.latents_mean, module.config.latents_std))
    return (z - mean) / std if inverse else z * std + mean


def statistics(module: Any, eps: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the batch norm, [1,4C,1,1]."""
    eps = module.config.batch_norm_eps if eps is None else eps
    return module.bn.running_mean.view(1, -1, 1, 1), torch.sqrt(module.bn.running_var + eps).view(1, -1, 1, 1)


def affine(module: Any, z: torch.Tensor, eps: float | None = None) -> torch.Tensor:
    mean, std = statistics(module, eps)
    return z * std + mean


def inverse(module: Any, z: torch.Tensor, eps: float | None = None) -> torch.Tensor:
    mean, std = statistics(module, eps)
    return (z - mean) / std


def ideogram_tile(module: Any, values: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Values of (patch row, patch column, channel) for each cell, as Ideogram 4's modular decoder lays them out."""
    c = z.shape[1]
    return values.flatten().view(2, 2, c).permute(2, 0, 1).repeat(1, z.shape[2] // 2, z.shape[3] // 2)


def ideogram_inputs(module: Any, z: torch.Tensor) -> torch.Tensor:
    mean, std = statistics(module)
    if z.ndim == 4:
        return z * ideogram_tile(module, std, z) + ideogram_tile(module, mean, z)
    z = z * std.view(1, 1, -1) + mean.view(1, 1, -1)
    z = z.view(1, 2, 3, 2, 2, z.shape[-1] // 4).permute(0, 5, 1, 3, 2, 4)  # the pipeline's own steps
    return z.reshape(1, -1, 4, 6)


def ideogram_latent(module: Any, mean_of_encoder: torch.Tensor) -> torch.Tensor:
    mean, std = statistics(module)
    z = (mean_of_encoder - ideogram_tile(module, mean, mean_of_encoder)) / ideogram_tile(module, std, mean_of_encoder)
    b, c, h, w = z.shape
    return z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


CASES = {
    "glm-image": Case(
        kl(latents_mean=[-0.7, 0.4, 0.2, -0.3], latents_std=[1.7, 0.6, 1.3, 0.8], scaling_factor=0.4, shift_factor=0.3),
        ((1, 4, 4, 8), (2, 4, 4, 4)),
        (32, 64),
        lambda module, z: z * per_channel(module.config.latents_std, z) + per_channel(module.config.latents_mean, z),
        lambda module, z: (z - per_channel(module.config.latents_mean, z)) / per_channel(module.config.latents_std, z),
    ),
    "ideogram4": Case(flux2, ((1, 8, 4, 6), (1, 6, 32)), (32, 48), ideogram_inputs, ideogram_latent),
    "kandinsky5-image": Case(
        kl(scaling_factor=0.41, shift_factor=-0.17),
        ((2, 1, 4, 6, 4), (2, 4, 4, 6)),
        (32, 48),
        lambda module, z: (z[:, 0].permute(0, 3, 1, 2) if z.ndim == 5 else z) / module.config.scaling_factor,
        lambda module, z: z * module.config.scaling_factor,
    ),
    "hunyuan-image-2.1": Case(
        lambda: diffusers.AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=16,
            block_out_channels=(32,) * 6,
            layers_per_block=1,
            spatial_compression_ratio=32,
            sample_size=64,
            scaling_factor=0.7,
        ),
        ((1, 16, 2, 4),),
        (64, 128),
        lambda module, z: z / module.config.scaling_factor,
        lambda module, z: z * module.config.scaling_factor,
    ),
    "hunyuanvideo-1.5": Case(
        lambda: diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=16,
            block_out_channels=(32,) * 5,
            layers_per_block=1,
            scaling_factor=0.7,
        ),
        ((1, 16, 3, 2, 3), (1, 16, 1, 2, 2)),
        (32, 48),
        lambda module, z: z / module.config.scaling_factor,
        lambda module, z: z * module.config.scaling_factor,
        frames=5,
    ),
    "wan2.1": Case(
        tiny_wan,
        ((1, 16, 3, 2, 3), (16, 2, 2, 3), (1, 16, 1, 2, 3)),
        (16, 24),
        by_channel,
        lambda module, z: by_channel(module, z, inverse=True),
        frames=5,
    ),
    "wan2.2-5b": Case(
        lambda: tiny_wan(**WAN_22),
        ((1, 48, 3, 2, 3), (1, 48, 1, 2, 3)),
        (32, 48),
        by_channel,
        lambda module, z: by_channel(module, z, inverse=True),
        frames=5,
    ),
    "qwen-image": Case(
        lambda: tiny_wan(diffusers.AutoencoderKLQwenImage),
        ((1, 6, 64), (1, 16, 1, 4, 6), (1, 16, 4, 6)),
        (32, 48),
        lambda module, z: by_channel(module, unpacked(z)),
        lambda module, z: by_channel(module, z, inverse=True)[:, :, 0],
        one_frame=True,
    ),
    "ernie-image": Case(
        flux2,
        ((1, 32, 2, 3),),
        (32, 48),
        lambda module, z: cells(affine(module, z, 1e-5)),
        lambda module, z: inverse(module, patches(z), 1e-5),
    ),
    "fibo2": Case(
        flux2,
        ((1, 8, 4, 6),),
        (32, 48),
        lambda module, z: cells(affine(module, patches(z))),
        lambda module, z: cells(inverse(module, patches(z))),
    ),
    "bria3.2": Case(
        kl(scaling_factor=0.37, shift_factor=None),
        ((1, 6, 16),),
        (32, 48),
        lambda module, z: z.view(1, 2, 3, 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 4, 4, 6) / 0.37,
        lambda module, z: z * 0.37,
    ),
    "sd-x4-upscaler": Case(
        kl(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            scaling_factor=0.31,  # the pipeline sets its own
        ),
        ((1, 4, 4, 6),),
        (16, 24),
        lambda module, z: z / 0.08333,
        lambda module, z: z * 0.08333,
    ),
    "flux3": Case(
        flux2,
        ((1, 32, 2, 3), (1, 8, 4, 6)),
        (32, 48),
        lambda module, z: cells(affine(module, z if z.shape[1] == 32 else patches(z))),
        lambda module, z: inverse(module, patches(z)),
    ),
    "flux2-small-decoder": Case(
        lambda: diffusers.AutoencoderKLFlux2(**BLOCKS, latent_channels=8, decoder_block_out_channels=(4, 4, 8, 8)),
        ((1, 32, 2, 3),),
        (32, 48),
        lambda module, z: cells(affine(module, z)),
        lambda module, z: inverse(module, patches(z)),
    ),
}


@pytest.fixture(params=CASES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Case, Any, DiffusersVAE, Recipe]:
    """A case, diffusers' module and ours with the same weights, which came through a folder."""
    case = CASES[request.param]
    torch.manual_seed(7)
    module = case.module().eval()
    if hasattr(module, "bn"):  # untrained statistics are zero and one, and would hide their use
        module.bn.running_mean.uniform_(-1, 1)
        module.bn.running_var.uniform_(0.01, 3)
    module.save_pretrained(tmp_path)
    vae, recipe = open_model(ModelSpec("mine", str(tmp_path), recipe=request.param, device="cpu").to_json())
    return case, module, vae, recipe


@torch.no_grad()
def test_decode(family: tuple[Case, Any, DiffusersVAE, Recipe]) -> None:
    """In each layout of its pipelines a latent gives the pixels that their own formula gives."""
    case, module, vae, recipe = family
    height, width = case.size
    for shape in case.latents:
        z = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        fit = fit_latent(recipe, vae.info, shape, model="m", height=height, width=width)
        found = decode(vae, recipe, z, fit=fit, scaling=OWN, output=Output.RAW).tensor
        expected = module.decode(case.inputs(module, z)).sample
        if case.one_frame:
            expected = expected[:, :, 0]
        assert (fit.height, fit.width) == tuple(expected.shape[-2:])
        assert fit.frames == (expected.shape[2] if expected.ndim == 5 else 1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_encode(family: tuple[Case, Any, DiffusersVAE, Recipe]) -> None:
    """A picture gives the latent that the pipelines' own formula gives."""
    case, module, vae, recipe = family
    frames = () if case.frames is None else (case.frames,)
    pixels = torch.rand((1, 3, *frames, *case.size), generator=torch.Generator().manual_seed(5)) * 2 - 1
    found = encode(vae, recipe, pixels, scaling=OWN, posterior=Posterior.MODE).tensor
    given = pixels.unsqueeze(2) if case.one_frame else pixels
    expected = case.latent(module, module.encode(given).latent_dist.mode())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_warming_up(family: tuple[Case, Any, DiffusersVAE, Recipe]) -> None:
    """The latent with which a replica warms up is one that the family takes."""
    _, _, vae, recipe = family
    z = torch.zeros(example_shape(recipe, vae.info, 8))
    fit = fit_latent(recipe, vae.info, tuple(z.shape), model="m", height=None, width=None)
    assert torch.isfinite(decode(vae, recipe, z, fit=fit, scaling=OWN, output=Output.UINT8).tensor.float()).all()


def test_frames_beyond_the_last_group(family: tuple[Case, Any, DiffusersVAE, Recipe]) -> None:
    """A video whose frames the VAE cannot encode is refused with the numbers that it can; no other one is refused."""
    case, _, vae, recipe = family
    if case.frames is None:
        return
    model = Served("m", (), recipe, ())
    video = Tensor("float32", (1, 3, 6, *case.size), bytes(4 * 3 * 6 * case.size[0] * case.size[1]))
    request = EncodeRequest("m", video, OWN, complete({}, ENCODE_ROWS), FORMATS["binary"])
    if vae.info.frames.whole:
        with pytest.raises(InvalidImage, match=r"has 6 frames; .* so send 5 or 9"):
            encode_job(model, vae.info, request, Settings())
    else:
        encode_job(model, vae.info, request, Settings())


def test_a_cancelled_decode_leaves_nothing_behind() -> None:
    """Feature maps that Wan's code keeps from frame to frame are dropped, and the next latent is decoded as ever."""
    module = tiny_wan().eval()
    [family] = [each for each in FAMILIES if each.cls == "AutoencoderKLWan"]
    vae = DiffusersVAE(module, source="m", revision="", family=family)
    z = torch.randn((1, 16, 2, 2, 3), generator=torch.Generator().manual_seed(3))
    layers: list[None] = []

    def cancel() -> None:
        layers.append(None)
        if len(layers) == 40:
            raise DeadlineExceeded("nobody waits")

    with torch.inference_mode():
        expected = vae.decode(z)
        with pytest.raises(DeadlineExceeded):
            vae.decoders[0].run(z, lambda *_: None, cancel)
        assert not any(isinstance(kept, torch.Tensor) for kept in module._feat_map)
        torch.testing.assert_close(vae.decode(z), expected, atol=0, rtol=0)
