"""Which layout a latent has, from its shape alone."""

import pytest
import torch
from diffusers import Flux2Pipeline, FluxPipeline
from einops import rearrange

from remote_vae.core.layout import MatchedLayout, example_shape, fit_latent
from remote_vae.core.recipe import Constants, Rearrange, Recipe
from remote_vae.core.vae_info import VAEInfo
from remote_vae.errors import LatentMismatch, MalformedRequest, RemoteVAEError
from remote_vae.models.families import find_recipe
from remote_vae.values import Frames

IMAGE = {channels: VAEInfo(channels, 8, Frames(), Constants(), "float32", deterministic=False) for channels in (4, 16)}
VIDEO = VAEInfo(16, 8, Frames(group=4), Constants(), "float32", deterministic=False)


def fit(
    shape: tuple[int, ...], *, channels: int = 16, height: int | None = None, width: int | None = None
) -> MatchedLayout:
    return fit_latent(find_recipe("flux1"), IMAGE[channels], shape, model="m", height=height, width=width)


def fit_video(shape: tuple[int, ...], **sizes: int | None) -> MatchedLayout:
    return fit_latent(find_recipe("hunyuanvideo"), VIDEO, shape, model="m", **{"height": None, "width": None, **sizes})


def fit_flux2(shape: tuple[int, ...], **sizes: int | None) -> MatchedLayout:
    info = VAEInfo(32, 8, Frames(), Constants(), "float32", deterministic=False)
    return fit_latent(find_recipe("flux2"), info, shape, model="m", **{"height": None, "width": None, **sizes})


def size(found: MatchedLayout) -> tuple[int, int, int, int]:
    return found.batch, found.frames, found.height, found.width


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [
        ((2, 16, 6, 10), 16, (2, 1, 48, 80)),
        ((1, 4, 151, 173), 4, (1, 1, 1208, 1384)),  # odd sizes occur
        ((16, 6, 10), 16, (1, 1, 48, 80)),  # the batch axis is missing
        ((4, 6, 16), 4, (1, 1, 48, 128)),
        ((16, 16, 16, 16), 16, (16, 1, 128, 128)),
    ],
)
def test_grids(shape: tuple[int, ...], channels: int, expected: tuple[int, ...]) -> None:
    """A grid of latents is [B,C,h,w], or [C,h,w] without its batch axis; the picture is the ratio times as large."""
    assert size(fit(shape, channels=channels)) == expected


@pytest.mark.parametrize(
    ("shape", "channels", "picture"),
    [
        ((2, 15, 64), 16, (48, 80)),
        ((1, 2, 15, 64), 16, (48, 80)),  # a leading 1 more
        ((2, 15, 16), 4, (48, 80)),
        ((2, 15, 64), 16, (56, 89)),  # sizes are floored to whole tokens
    ],
)
def test_packed_latents(shape: tuple[int, ...], channels: int, picture: tuple[int, int]) -> None:
    """Tokens of 2x2 cells, with a leading 1 or without, are a grid of the size that height and width say."""
    found = fit(shape, channels=channels, height=picture[0], width=picture[1])
    assert size(found) == (2, 1, 48, 80)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 128, 3, 5), (2, 1, 48, 80)),  # patches
        ((2, 32, 6, 10), (2, 1, 48, 80)),  # cells
        ((128, 3, 5), (1, 1, 48, 80)),
        ((32, 6, 10), (1, 1, 48, 80)),
        ((2, 15, 128), (2, 1, 48, 80)),  # tokens
        ((1, 2, 15, 128), (2, 1, 48, 80)),
        ((1, 128, 2, 128), (1, 1, 32, 2048)),  # patches, not 128 pictures of two tokens
    ],
)
def test_patches_as_channels(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """FLUX.2's latents are patches, cells or tokens; all lead to patches, each channel of which is a cell's."""
    found = fit_flux2(shape, height=48, width=80)
    assert size(found) == expected
    patches = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    free = {name: length for name, length in found.sizes.items() if name in found.pattern.split("->")[0]}
    grid = rearrange(patches, found.pattern, **free)
    batch, _, height, width = expected
    assert grid.shape == (batch, 128, height // 16, width // 16)
    if shape == (2, 32, 6, 10):
        assert torch.equal(grid, Flux2Pipeline._patchify_latents(patches))


@pytest.mark.parametrize("shape", [(1, 32, 5, 10), (1, 32, 6, 9), (32, 6, 9)])
def test_half_a_patch(shape: tuple[int, ...]) -> None:
    """A side of an odd number of cells has no whole patches, which the refusal says."""
    with pytest.raises(LatentMismatch, match=r"side of [59] cells.*patches of 2x2 cells.*multiples of 2"):
        fit_flux2(shape)


def test_a_fit_unpacks_as_the_pipelines_do() -> None:
    """A packed latent is rearranged into the very grid that it was packed from."""
    grid = torch.randn((2, 16, 6, 10), generator=torch.Generator().manual_seed(1))
    packed = FluxPipeline._pack_latents(grid, 2, 16, 6, 10)
    found = fit(tuple(packed.shape), height=48, width=80)
    free = {name: found.sizes[name] for name in ("h", "w", "i", "j")}
    assert torch.equal(rearrange(packed, found.pattern, **free), grid)


def test_a_grid_needs_no_size() -> None:
    """Height and width are for packed latents; with a grid they are hints, and wrong ones change nothing."""
    assert size(fit((1, 16, 6, 10), height=7, width=9000)) == (1, 1, 48, 80)
    assert size(fit_video((1, 16, 3, 40, 64), height=24, width=320)) == (1, 9, 320, 512)


@pytest.mark.parametrize(("shape", "expected"), [((2, 16, 7, 4, 6), (2, 25, 32, 48)), ((16, 1, 4, 6), (1, 1, 32, 48))])
def test_videos(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """A video's latent is [B,C,F,h,w], with or without its batch axis, and its frames are 4(F-1)+1."""
    found = fit_video(shape)
    assert size(found) == expected
    assert found.pixels == expected[0] * expected[1] * expected[2] * expected[3]


@pytest.mark.parametrize("sizes", [{}, {"height": 48}, {"width": 80}])
def test_packed_latents_need_both_sizes(sizes: dict[str, int]) -> None:
    """A packed latent without height or width is malformed, and the refusal names both."""
    with pytest.raises(MalformedRequest, match="height and width"):
        fit((1, 15, 64), **sizes)


@pytest.mark.parametrize(
    ("shape", "sizes", "says"),
    [
        ((1, 4, 6, 10), {}, "4 channels; model 'm' takes 16"),
        ((1, 15, 16), {"height": 48, "width": 80}, r"b \(h w\) \(c i j\), .* with c=16"),
        ((4, 6, 10), {}, "c h w, .* with c=16"),
        ((1, 15, 64), {"height": 48, "width": 96}, "15 tokens; .* = 18"),
        ((1, 15, 64), {"height": 80, "width": 32}, "15 tokens; .* = 10"),
        ((64,), {}, "does not know"),
        ((1, 1, 1, 16, 6, 10), {}, "does not know"),
        ((3, 2, 15, 64), {"height": 48, "width": 80}, "2 channels; model 'm' takes 16"),
    ],
)
def test_what_does_not_fit(shape: tuple[int, ...], sizes: dict[str, int], says: str) -> None:
    """A latent of another model, rank or size is refused with what it has and what was expected."""
    with pytest.raises(LatentMismatch, match=says) as caught:
        fit(shape, **sizes)
    assert caught.value.detail["shape"] == list(shape)


@pytest.mark.parametrize("shape", [(1, 6, 16, 4, 10), (1, 4, 6, 10), (1, 15, 64)])
def test_what_does_not_fit_a_video(shape: tuple[int, ...]) -> None:
    """A picture's latent is refused by a video model, and so is a video's with its axes in another order."""
    with pytest.raises(RemoteVAEError, match=r"16|expected one of"):
        fit_video(shape, height=48, width=80)


def test_frames_and_back() -> None:
    """A video's length in frames gives the latent's length that gives it; frames beyond a whole group are dropped."""
    assert [VIDEO.frames.of_latent(count) for count in (1, 2, 7)] == [1, 5, 25]
    assert [VIDEO.frames.latent(count) for count in (1, 4, 5, 8, 25)] == [1, 1, 2, 2, 7]


@pytest.mark.parametrize(
    ("recipe", "info", "shape"),
    [
        ("sd1", IMAGE[4], (1, 4, 8, 8)),
        ("flux1", IMAGE[16], (1, 16, 8, 8)),
        ("flux2", IMAGE[16], (1, 64, 4, 4)),
        ("hunyuanvideo", VIDEO, (1, 16, 1, 8, 8)),
    ],
)
def test_an_example_fits(recipe: str, info: VAEInfo, shape: tuple[int, ...]) -> None:
    """The latent with which a replica warms up has the recipe's first layout."""
    found = example_shape(find_recipe(recipe), info, 8)
    assert found == shape
    fit = fit_latent(find_recipe(recipe), info, found, model="m", height=None, width=None)
    assert (fit.pattern, fit.height, fit.width) == (find_recipe(recipe).layouts[0].pattern, 64, 64)


PACKED = Recipe("packed", (Rearrange("b (f h w) c -> b c f h w"),))


@pytest.mark.parametrize(("tokens", "frames"), [(6, 1), (18, 9)])
def test_packed_videos(tokens: int, frames: int) -> None:
    """The frames of a packed video follow from its tokens and the picture's size; the grid is what was packed."""
    found = fit_latent(PACKED, VIDEO, (2, tokens, 16), model="m", height=16, width=24)
    assert size(found) == (2, frames, 16, 24)
    packed = torch.arange(2.0 * tokens * 16).reshape(2, tokens, 16)
    grid = rearrange(packed, found.pattern, **{name: found.sizes[name] for name in ("f", "h", "w")})
    assert torch.equal(grid[1, 3].flatten(), packed[1, :, 3])


def test_packed_videos_that_do_not_fit() -> None:
    """Tokens that are no whole number of frames are refused with the numbers, and so is a size that is not given."""
    with pytest.raises(LatentMismatch, match=r"has 13 tokens; .*16//8 x 24//8 = 6 for each latent frame.*no multiple"):
        fit_latent(PACKED, VIDEO, (1, 13, 16), model="m", height=16, width=24)
    with pytest.raises(LatentMismatch, match="= 0 for each latent frame"):
        fit_latent(PACKED, VIDEO, (1, 13, 16), model="m", height=7, width=24)
    with pytest.raises(MalformedRequest, match="needs height and width"):
        fit_latent(PACKED, VIDEO, (1, 12, 16), model="m", height=None, width=None)
