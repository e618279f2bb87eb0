"""Every video family gives as many frames as its class in diffusers, both ways, or refuses with the nearest numbers."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from remote_vae.core.layout import example_shape, fit_latent
from remote_vae.core.recipe import Recipe
from remote_vae.core.vae_info import VAEInfo
from remote_vae.engine.pool import Served
from remote_vae.errors import InvalidImage, LatentMismatch
from remote_vae.models.families import MODELS, family_of
from remote_vae.models.vae import DiffusersVAE
from remote_vae.protocol.messages import EncodeRequest
from remote_vae.protocol.options import ENCODE_ROWS, complete
from remote_vae.server.adapt import encode_job
from remote_vae.server.settings import Settings
from remote_vae.values import FORMATS, Counts, Scaling, Tensor

from .cases import CASES, Case

VIDEOS = list({case.module: name for name, case in CASES.items() if case.frames is not None}.values())
MOST_LATENT_FRAMES, MOST_FRAMES = 12, 24


def build(name: str) -> tuple[Case, DiffusersVAE]:
    """A case and its tiny module."""
    case, family = CASES[name], family_of(MODELS[name])
    torch.manual_seed(7)
    module = case.module().eval()
    family.prepare(module)
    return case, DiffusersVAE(module, source="m", revision="", family=family)


def cells(case: Case, vae: DiffusersVAE) -> tuple[int, int]:
    height, width = (side // vae.info.spatial_compression_ratio for side in case.size)
    return height, width


@torch.no_grad()
@pytest.mark.parametrize("name", VIDEOS)
def test_decode(name: str) -> None:
    """Of 1 to 12 latent frames come the frames that are foretold, or a refusal with numbers that can be decoded."""
    case, vae = build(name)
    frames, recipe = vae.info.frames, MODELS[name].recipe
    for count in range(1, MOST_LATENT_FRAMES + 1):
        shape = latent_of(count, recipe, vae.info, min(cells(case, vae)))
        if frames.latents.nearest(count) != (count,):
            with pytest.raises(LatentMismatch, match=rf"has {count} frames; .* so send \d+") as caught:
                fit_latent(recipe, vae.info, shape, model="m", height=None, width=None)
            nearest = [int(number) for number in str(caught.value).rsplit("send ", 1)[1].split(" or ")]
            assert all(frames.latents.nearest(each) == (each,) for each in nearest)
            continue
        fit = fit_latent(recipe, vae.info, shape, model="m", height=None, width=None)
        assert fit.frames == case.decode(vae.module, case.inputs(vae.module, torch.zeros(shape))).shape[2]


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in VIDEOS if CASES[name].latent is not None])
def test_encode(name: str) -> None:
    """Of 1 to 24 frames come the latent frames that are foretold, or a refusal with numbers that can be encoded."""
    case, vae = build(name)
    model = Served("m", (), MODELS[name].recipe, ())

    @cache
    def found_of(count: int) -> int:
        shape = (1, vae.info.pixel_channels, count, *case.size)
        return case.encode(vae.module, torch.zeros(shape)).shape[2]

    for count in range(1, MOST_FRAMES + 1):
        shape = (1, vae.info.pixel_channels, count, *case.size)
        try:
            job = encode_job(model, vae.info, request(shape), Settings())
        except InvalidImage as refusal:
            nearest = [int(number) for number in str(refusal).rsplit("send ", 1)[1].split(" or ")]
            for each in nearest:
                assert found_of(each) == vae.info.frames.latent(each)
            continue
        found = found_of(count)
        assert found == vae.info.frames.latent(count)
        assert job.latent_values == vae.info.latent_channels * found * math.prod(cells(case, vae))


def latent_of(count: int, recipe: Recipe, info: VAEInfo, side: int) -> tuple[int, ...]:
    """The shape of a latent of so many frames, in the recipe's first layout."""
    return example_shape(recipe, replace(info, frames=replace(info.frames, latents=Counts(count))), side)


def request(shape: tuple[int, ...]) -> EncodeRequest:
    video = Tensor("float32", shape, bytes(4 * math.prod(shape)))
    return EncodeRequest("m", video, Scaling(), complete({}, ENCODE_ROWS), FORMATS["binary"])
