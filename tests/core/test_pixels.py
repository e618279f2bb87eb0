"""Pixels in and out, and draws from the posterior, against diffusers' own."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from remote_vae.core.encode import LARGEST_PIXEL, _draw, prepare
from remote_vae.core.pixels import channels_last, signed, to_uint8, to_unit
from remote_vae.errors import InvalidValue, NonFiniteInput
from remote_vae.values import Posterior


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_floats_to_uint8() -> None:
    """Every float that lies at or next to a step is quantised as diffusers quantises it, out of range too."""
    steps = torch.arange(-10, 266, dtype=torch.float32).repeat_interleave(3) + torch.tensor([-0.5, 0.0, 0.5]).repeat(
        276
    )
    raw = (steps / 255 * 2 - 1)[:, None, None, None].expand(-1, 3, 1, 1)
    expected = VaeImageProcessor().postprocess(raw, output_type="pil")
    found = channels_last(to_uint8(to_unit(raw)))
    assert np.array_equal(found.numpy(), np.stack([np.asarray(picture) for picture in expected]))


def test_to_unit_undoes_signed() -> None:
    """A range's inverse gives the values back."""
    unit = random(1, 3, 8, 8)
    torch.testing.assert_close(to_unit(signed(unit)), unit, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:Passing `image` as torch tensor with value range")
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("height", "width"), [(48, 80), (53, 70), (49, 95), (16, 31)])
@pytest.mark.parametrize("patch", [1, 2])
def test_prepared_tensors(signed: bool, height: int, width: int, patch: int) -> None:
    """A float tensor's range is recognised and its sides are floored as diffusers' image processor does."""
    pixels = random(2, 3, height, width) * (2 if signed else 1) - (1 if signed else 0)
    expected = VaeImageProcessor(vae_scale_factor=8 * patch).preprocess(pixels)
    found = prepare(pixels, multiple=8 * patch)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_prepared_in_float32(dtype: torch.dtype) -> None:
    """A half-precision picture is prepared in float32."""
    pixels = random(1, 3, 16, 16).to(dtype)
    assert torch.equal(prepare(pixels, multiple=8), pixels.float() * 2 - 1)


def test_uint8_pictures() -> None:
    """uint8 pixels are taken channels last or first, and give what a float picture of the same levels gives."""
    levels = (random(2, 16, 24, 3) * 255).round().to(torch.uint8)
    expected = levels.permute(0, 3, 1, 2).float() / 255 * 2 - 1
    assert torch.equal(prepare(levels, multiple=8), expected)
    assert torch.equal(prepare(levels.permute(0, 3, 1, 2), multiple=8), expected)


def test_uint8_videos() -> None:
    """The frames of a uint8 video are taken as uint8 pictures are; three of them are not mistaken for channels."""
    levels = (random(2, 3, 16, 24, 3) * 255).round().to(torch.uint8)
    expected = levels.permute(0, 4, 1, 2, 3).float() / 255 * 2 - 1
    assert torch.equal(prepare(levels, multiple=8), expected)
    assert torch.equal(prepare(levels.permute(0, 4, 1, 2, 3), multiple=8), expected)


def test_a_videos_frames_are_floored_one_by_one() -> None:
    """Every frame of a video is resized as a picture of its own would be."""
    video = random(2, 3, 5, 19, 26)
    found = prepare(video, multiple=8)
    assert found.shape == (2, 3, 5, 16, 24)
    for frame in range(5):
        assert torch.equal(found[:, :, frame], prepare(video[:, :, frame], multiple=8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pictures_that_are_not_finite(bad: float) -> None:
    """A picture with one value that is not finite is refused."""
    pixels = random(1, 3, 16, 16)
    pixels[0, 1, 2, 3] = bad
    with pytest.raises(NonFiniteInput, match="picture"):
        prepare(pixels, multiple=8)


def test_pictures_in_levels() -> None:
    """Floats that must be levels of 255 are refused with the way out; a little beyond the range is not."""
    with pytest.raises(InvalidValue, match="uint8"):
        prepare(random(1, 3, 16, 16) * 255, multiple=8)
    prepare(random(1, 3, 16, 16) * LARGEST_PIXEL, multiple=8)


MOMENTS = torch.randn((2, 8, 5, 7), generator=torch.Generator().manual_seed(3)) * 20  # beyond the clamp, both ways


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_seeded_draw(dtype: torch.dtype) -> None:
    """A seeded sample is the one that diffusers' distribution draws with a generator of that seed."""
    moments = MOMENTS.to(dtype)
    expected = DiagonalGaussianDistribution(moments).sample(torch.Generator().manual_seed(9))
    assert torch.equal(_draw(moments, Posterior.SAMPLE, 9), expected)
    assert torch.equal(_draw(moments, Posterior.MODE, 9), moments[:, :4])


def test_a_draw_without_a_seed() -> None:
    """Without a seed two samples differ, and drawing leaves torch's own randomness alone."""
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert not torch.equal(_draw(MOMENTS, Posterior.SAMPLE, None), _draw(MOMENTS, Posterior.SAMPLE, None))
    assert torch.equal(torch.random.get_rng_state(), before)
