"""How many frames latent frames make, and which numbers of them are possible."""

import json

import pytest

from remote_vae.core.layout import example_shape, fit_latent
from remote_vae.core.recipe import Constants, Recipe
from remote_vae.core.vae_info import VAEInfo
from remote_vae.errors import LatentMismatch
from remote_vae.models.families import find_recipe
from remote_vae.values import Counts, FrameRule, Frames

CLIPS = Frames(4, rule=FrameRule.CLIPS, span=5, latents=Counts(3), dropped=3)
GRID = Frames(4, 4, whole=True, latents=Counts(6, 4))
RULES = {
    "causal": (Frames(4), [1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45]),
    "pairs": (Frames(4, rule=FrameRule.PAIRS), [1, 8, 9, 16, 17, 24, 25, 32, 33, 40, 41, 48]),
    "clips": (CLIPS, [1, 5, 9, 13, 17, 18, 22, 26, 30, 34, 35, 39]),
    "chunks": (Frames(4, rule=FrameRule.CHUNKS, span=4), [1, 5, 9, 13, 17, 18, 25, 29, 33, 34, 41, 45]),
    "without a first": (Frames(4, 4), [4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48]),
    "pictures": (Frames(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
}


@pytest.mark.parametrize("rule", RULES)
def test_frames_of_latent_frames(rule: str) -> None:
    """Each rule gives the frames that a VAE of its kind gives."""
    frames, expected = RULES[rule]
    assert [frames.of_latent(count) for count in range(1, 13)] == expected


def test_latent_frames_of_frames() -> None:
    """Encoding in clips fills the last clip; an encoder that adds frames reaches the next group earlier."""
    assert [CLIPS.latent(count) for count in (1, 2, 17, 18, 22, 34, 35, 39)] == [1, 2, 2, 7, 7, 7, 12, 12]
    assert [Frames(8, added=3).latent(count) for count in (1, 5, 6, 13, 14, 21, 22)] == [1, 1, 2, 2, 3, 3, 4]
    assert [GRID.latent(count) for count in (24, 40)] == [6, 10]


def test_nearest() -> None:
    """A number that is possible is its own nearest; otherwise there is one below and one above."""
    assert [Counts(6, 4).nearest(number) for number in (1, 5, 6, 7, 10)] == [(6,), (6,), (6,), (6, 10), (10,)]
    assert [Counts().refusal(number, "m") for number in (1, 2, 99)] == ["", "", ""]
    assert Counts(6, 4).refusal(9, "m") == "model 'm' takes 6 and groups of 4 after that, so send 6 or 10"
    assert Counts(3).refusal(2, "m") == "model 'm' takes 3 or more, so send 3"


def test_counts_of_an_encoder() -> None:
    """An encoder of whole groups takes those that its decoder gives; another one takes any number."""
    assert Frames(4, whole=True).counts == Counts(1, 4)
    assert GRID.counts == Counts(24, 16)
    assert CLIPS.counts == Counts()


INFO = VAEInfo(
    16, 8, GRID, Constants(), "float32", deterministic=False, rows=Counts(40, 25), columns=Counts(40, 30)
)  # fmt: skip


@pytest.mark.parametrize("frames", [each for each, _ in RULES.values()] + [GRID])
def test_the_rule_travels(frames: Frames) -> None:
    """What a client reads from a card, and a server from its replica, is the same rule."""
    info = VAEInfo(16, 8, frames, Constants(), "float32", deterministic=False, rows=Counts(40, 25))
    found = VAEInfo.from_json(json.loads(json.dumps(info.to_json())))
    assert found == info
    assert [found.frames.of_latent(n) for n in range(1, 9)] == [frames.of_latent(n) for n in range(1, 9)]


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((1, 16, 7, 40, 40), r"has 7 frames; model 'm' takes 6 and groups of 4 after that, so send 6 or 10"),
        ((1, 16, 6, 41, 40), r"has 41 rows; .* so send 40 or 65"),
        ((16, 6, 40, 69), r"has 69 columns; .* so send 40 or 70"),
        ((1, 16, 1, 40, 40), r"has 1 frames; .* so send 6"),
    ],
)
def test_what_cannot_be_decoded(shape: tuple[int, ...], says: str) -> None:
    """A latent with a number of frames, rows or columns that is not possible is refused with the nearest that are."""
    with pytest.raises(LatentMismatch, match=says):
        fit_latent(find_recipe("hunyuanvideo"), INFO, shape, model="m", height=None, width=None)


def test_the_smallest_example() -> None:
    """The latent with which a replica warms up is possible."""
    recipe: Recipe = find_recipe("hunyuanvideo")
    shape = example_shape(recipe, INFO, 8)
    assert shape == (1, 16, 6, 40, 40)
    fit = fit_latent(recipe, INFO, shape, model="m", height=None, width=None)
    assert (fit.frames, fit.height, fit.width) == (24, 320, 320)
