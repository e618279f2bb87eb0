"""Each family against the formula of its pipeline in diffusers, with factors and statistics that are not neutral."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from einops import rearrange
from torch.utils._python_dispatch import TorchDispatchMode

from remote_vae.core.decode import _before_vae, _free_sizes, decode
from remote_vae.core.encode import encode
from remote_vae.core.layout import example_shape, fit_latent
from remote_vae.core.live_bytes import LiveBytes, tensors_in
from remote_vae.core.own_code import OwnCode
from remote_vae.core.recipe import Recipe
from remote_vae.core.stages import Program
from remote_vae.engine.pool import Served
from remote_vae.errors import DeadlineExceeded, InvalidImage
from remote_vae.models.families import FAMILIES
from remote_vae.models.fast_import import open_model
from remote_vae.models.spec import ModelSpec
from remote_vae.models.vae import DiffusersVAE
from remote_vae.protocol.messages import DecodeRequest, EncodeRequest
from remote_vae.protocol.options import DECODE_ROWS, ENCODE_ROWS, complete
from remote_vae.server.adapt import decode_job, encode_job
from remote_vae.server.settings import Settings
from remote_vae.values import FORMATS, Output, Posterior, Scaling, ScalingMode, Tensor

from .cases import CASES, Case
from .cases.qwen_image_rgba import TINY_21
from .conftest import tiny_wan

OWN = Scaling(ScalingMode.MODEL)


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
        expected = case.decode(module, case.inputs(module, z))
        if case.one_frame:
            expected = expected[:, :, 0]
        assert (fit.height, fit.width) == tuple(expected.shape[-2:])
        assert fit.frames == (expected.shape[2] if expected.ndim == 5 else 1)
        scale = max(1.0, float(expected.abs().max()))  # LTX-2 clamps nothing
        torch.testing.assert_close(found, expected, atol=1e-5 * scale, rtol=1e-5)
        assert reply_bytes(vae, recipe, z, height=height, width=width) == found.nbytes


def reply_bytes(vae: DiffusersVAE, recipe: Recipe, z: torch.Tensor, **size: int) -> int:
    """The bytes that the server makes room for, and by which it judges the limit of a reply."""
    options = complete({"output_type": "pt", **size}, DECODE_ROWS)
    request = DecodeRequest("m", Tensor("float32", tuple(z.shape), z.numpy().data), OWN, options, FORMATS["binary"])
    return decode_job(Served("m", (), recipe, ()), vae.info, request, Settings()).reply_bytes


@torch.no_grad()
def test_encode(family: tuple[Case, Any, DiffusersVAE, Recipe]) -> None:
    """A picture gives the latent that the pipelines' own formula gives."""
    case, module, vae, recipe = family
    if case.latent is None:
        return
    frames = () if case.frames is None else (case.frames,)
    shape = (1, vae.info.pixel_channels, *frames, *case.size)
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(5)) * 2 - 1
    found = encode(vae, recipe, pixels, scaling=OWN, posterior=Posterior.MODE).tensor
    given = pixels.unsqueeze(2) if case.one_frame else pixels
    expected = case.latent(module, case.encode(module, given))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_prediction(family: tuple[Case, Any, DiffusersVAE, Recipe]) -> None:
    """The memory that a model's own decoder takes is predicted to within a fifth."""
    case, _, vae, recipe = family
    executor = vae.decoders[0]
    if not isinstance(executor, OwnCode) or isinstance(vae.decoder, Program):
        return
    fit = fit_latent(recipe, vae.info, case.latents[0], model="m", height=case.size[0], width=case.size[1])
    z = _before_vae(recipe, rearrange(torch.randn(case.latents[0]), fit.pattern, **_free_sizes(fit)), vae, OWN)
    predicted = executor.peak_bytes(tuple(z.shape), z.dtype, 0)
    with LiveBytes() as live:
        executor.run(z, lambda *_: None, lambda: None)
    assert predicted is not None
    assert 0.8 < predicted / live.peak < 1.2


def test_warming_up(family: tuple[Case, Any, DiffusersVAE, Recipe]) -> None:
    """The latent with which a replica warms up is one that the family takes, without double precision."""
    _, _, vae, recipe = family
    z = torch.zeros(example_shape(recipe, vae.info, 8))
    fit = fit_latent(recipe, vae.info, tuple(z.shape), model="m", height=None, width=None)
    with WithoutDoubles():
        found = decode(vae, recipe, z, fit=fit, scaling=OWN, output=Output.UINT8).tensor
    assert torch.isfinite(found.float()).all()


class WithoutDoubles(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """As Apple's GPUs, which have no double precision."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        assert not any(tensor.dtype is torch.float64 for tensor in tensors_in(found)), func
        return found


def test_frames_beyond_the_last_group(family: tuple[Case, Any, DiffusersVAE, Recipe]) -> None:
    """A video whose frames the VAE cannot encode is refused with the numbers that it can; no other one is refused."""
    case, _, vae, recipe = family
    if case.frames is None:
        return
    model = Served("m", (), recipe, ())
    video = Tensor("float32", (1, 3, 6, *case.size), bytes(4 * 3 * 6 * case.size[0] * case.size[1]))
    request = EncodeRequest("m", video, OWN, complete({}, ENCODE_ROWS), FORMATS["binary"])
    if vae.info.frames.whole:
        frames = vae.info.frames
        before, least = 1 + 5 // frames.group * frames.group, frames.of_latent(frames.latents.least)
        nearest = least if least > 6 else f"{before} or {before + frames.group}"
        with pytest.raises(InvalidImage, match=rf"has 6 frames; .* so send {nearest}$"):
            encode_job(model, vae.info, request, Settings())
    else:
        encode_job(model, vae.info, request, Settings())


STATEFUL = {
    "AutoencoderKLWan": (tiny_wan, (1, 16, 2, 2, 3)),
    "AutoencoderKLQwenImage": (lambda: tiny_wan(diffusers.AutoencoderKLQwenImage), (1, 16, 1, 2, 3)),
    "AutoencoderKLQwenImage21": (lambda: diffusers.AutoencoderKLQwenImage21(**TINY_21), (1, 64, 1, 2, 3)),
}


@pytest.mark.parametrize("cls", STATEFUL)
def test_a_cancelled_decode_leaves_nothing_behind(cls: str) -> None:
    """Feature maps that Wan's code keeps from frame to frame are dropped, and the next latent is decoded as ever."""
    build, shape = STATEFUL[cls]
    module = build().eval()
    [family] = [each for each in FAMILIES if each.cls == cls]
    vae = DiffusersVAE(module, source="m", revision="", family=family)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    layers: list[None] = []

    def cancel() -> None:
        layers.append(None)
        if len(layers) == 40:
            raise DeadlineExceeded("nobody waits")

    with torch.inference_mode():
        expected = vae.decode(z)
        own = next(executor for executor in vae.decoders if executor.name == "whole")
        with pytest.raises(DeadlineExceeded):
            own.run(z, lambda *_: None, cancel)
        assert not any(isinstance(kept, torch.Tensor) for kept in module._feat_map)
        torch.testing.assert_close(vae.decode(z), expected, atol=0, rtol=0)
