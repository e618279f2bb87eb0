"""What single families of videos do that the table of families does not show."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from remote_vae.core.decode import decode
from remote_vae.core.encode import encode
from remote_vae.core.layout import fit_latent
from remote_vae.core.live_bytes import LiveBytes
from remote_vae.engine.pool import Served
from remote_vae.errors import DeadlineExceeded, InvalidImage, LatentMismatch
from remote_vae.models.families import MODELS, family_of, recipes_for
from remote_vae.models.vae import DiffusersVAE
from remote_vae.protocol.messages import EncodeRequest
from remote_vae.protocol.options import ENCODE_ROWS, complete
from remote_vae.server.adapt import encode_job
from remote_vae.server.settings import Settings
from remote_vae.values import FORMATS, Output, Posterior, Scaling, ScalingMode, Tensor

from .cases.video import CASES, allegro, cogvideox, cosmos, easyanimate

OWN = Scaling(ScalingMode.MODEL)


def served(name: str, build: Callable[..., Any], **config: Any) -> DiffusersVAE:
    torch.manual_seed(7)
    module, family = build(**config).eval(), family_of(MODELS[name])
    family.prepare(module)
    return DiffusersVAE(module, source="m", revision="", family=family)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def test_cosmos_without_statistics() -> None:
    """Its pipelines still divide by sigma_data, and multiply when they encode."""
    vae, recipe = served("cosmos", cosmos, latents_mean=None, latents_std=None), MODELS["cosmos"].recipe
    z = noise(1, 16, 2, 2, 3)
    fit = fit_latent(recipe, vae.info, tuple(z.shape), model="m", height=None, width=None)
    found = decode(vae, recipe, z, fit=fit, scaling=OWN, output=Output.RAW).tensor
    torch.testing.assert_close(found, vae.module.decode(z / 0.5).sample, atol=1e-5, rtol=1e-5)
    pixels = noise(1, 3, 9, 16, 24).clamp(-1, 1)
    latent = encode(vae, recipe, pixels, scaling=OWN, posterior=Posterior.MODE).tensor
    torch.testing.assert_close(latent, vae.module.encode(pixels).latent_dist.mode() * 0.5, atol=1e-5, rtol=1e-5)


def test_more_frames_than_statistics() -> None:
    """A latent with more frames than Cosmos has statistics for is refused, and so is the video of one."""
    vae, recipe = served("cosmos", cosmos), MODELS["cosmos"].recipe
    with pytest.raises(LatentMismatch, match="has 4 frames; model 'm' takes 1 to 3, so send 3"):
        fit_latent(recipe, vae.info, (1, 16, 4, 2, 3), model="m", height=None, width=None)
    with pytest.raises(InvalidImage, match="has 18 frames; model 'm' takes 1 to 17, so send 17"):
        encode_job(Served("m", (), recipe, ()), vae.info, video(18, 16, 24), Settings())


@pytest.mark.parametrize(
    ("height", "width", "says"),
    [
        (136, 128, None),
        (130, 133, None),  # as ever, sides are floored to whole cells
        (128, 136, "is 136 pixels wide; .* so send 128 or 176"),
        (120, 128, "is 120 pixels high; .* so send 128"),
    ],
)
def test_pixels_off_allegros_tiles(height: int, width: int, says: str | None) -> None:
    """Sides that whole tiles do not fill are refused with those that they do; its class would encode zeros."""
    vae = served("allegro", allegro)
    model = Served("m", (), MODELS["allegro"].recipe, ())
    if says is None:
        encode_job(model, vae.info, video(24, height, width), Settings())
        return
    with pytest.raises(InvalidImage, match=says):
        encode_job(model, vae.info, video(24, height, width), Settings())


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((1, 4, 8, 16, 16), "has 8 frames; .* so send 6 or 10"),
        ((1, 4, 6, 15, 16), "has 15 rows; .* so send 16"),
        ((1, 4, 6, 16, 20), "has 20 columns; .* so send 16 or 22"),
    ],
)
def test_latents_off_allegros_tiles(shape: tuple[int, ...], says: str) -> None:
    """A latent that whole tiles do not fill is refused with those that they do; its class would leave it black."""
    vae = served("allegro", allegro)
    with pytest.raises(LatentMismatch, match=says):
        fit_latent(MODELS["allegro"].recipe, vae.info, shape, model="m", height=None, width=None)


@pytest.mark.parametrize("decoding", [True, False])
def test_easyanimate_after_an_exception(decoding: bool) -> None:
    """Frames that its own layers keep are dropped when a job is cancelled, and the next job is done as ever."""
    vae = served("easyanimate", easyanimate)
    executor = next(way for way in (vae.decoders if decoding else vae.encoders) if way.name == "pieces")
    given = noise(1, 16, 3, 2, 3) if decoding else noise(1, 3, 9, 16, 24)
    layers: list[None] = []

    def cancel() -> None:
        layers.append(None)
        if len(layers) == 60:
            raise DeadlineExceeded("nobody waits")

    with torch.inference_mode():
        expected = vae.decode(given) if decoding else vae.encode(given)
        with pytest.raises(DeadlineExceeded):
            executor.run(given, lambda *_: None, cancel)
        found = vae.decode(given) if decoding else vae.encode(given)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_memory_is_foretold(name: str) -> None:
    """What these families' own code will take is counted on meta tensors, exactly, in both directions."""
    vae, (first, *_) = served(name, CASES[name].module), CASES[name].latents
    latent = (1, vae.info.latent_channels, first[1] if first[2] == vae.info.latent_channels else first[2], *first[-2:])
    height, width = (side * vae.info.spatial_compression_ratio for side in latent[-2:])
    pixels = (1, 3, vae.info.frames.of_latent(latent[2]), height, width)
    for ways, shape in ((vae.decoders, latent), (vae.encoders, pixels)):
        executor = next(way for way in ways if way.name != "frames")  # Mochi's, whose tests predict it within 15 %
        with torch.inference_mode(), LiveBytes() as live:
            executor.run(noise(*shape), lambda *_: None, lambda: None)
        assert executor.peak_bytes(shape, torch.float32, 0) == live.peak


def test_as_many_frames_as_channels() -> None:
    """CogVideoX's latent with 16 frames has its frames before its channels, as its pipelines have them."""
    vae, recipe = served("cogvideox", cogvideox), MODELS["cogvideox"].recipe
    fit = fit_latent(recipe, vae.info, (1, 16, 16, 2, 3), model="m", height=None, width=None)
    assert fit.pattern == recipe.layouts[0].pattern
    assert fit.frames == 64


def test_weights_that_encode_as_they_decode() -> None:
    """The recipe of CogVideoX 1.5's image-to-video takes only weights that say so."""
    config = {"_class_name": "AutoencoderKLCogVideoX", "latent_channels": 16, "scaling_factor": 0.7}
    assert recipes_for({**config, "invert_scale_latents": False}) == ("cogvideox",)
    assert recipes_for({**config, "invert_scale_latents": True}) == ("cogvideox", "cogvideox1.5-i2v")


def video(frames: int, height: int, width: int) -> EncodeRequest:
    shape = (1, 3, frames, height, width)
    tensor = Tensor("float16", shape, bytes(2 * 3 * frames * height * width))
    return EncodeRequest("m", tensor, OWN, complete({}, ENCODE_ROWS), FORMATS["binary"])
