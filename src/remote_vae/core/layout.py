"""Which of a recipe's layouts a latent has, from its shape alone: no tensor is touched."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from remote_vae.core.recipe import Rearrange, Recipe
from remote_vae.core.vae_info import VAEInfo
from remote_vae.errors import LatentMismatch, MalformedRequest, RemoteVAEError

IN_WORDS: Final = {"f": "latent frame", "l": "layer"}


@dataclass(frozen=True, slots=True)
class MatchedLayout:
    """A latent's layout and the length of every axis of it.

    *Units*: batch in latents, frames, height and width in pixels, as the decoded output will have them.
    """

    pattern: str
    sizes: Mapping[str, int]
    batch: int
    frames: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Output pixels, frames and batch counted: the cost of the job."""
        return self.batch * self.frames * self.height * self.width


@dataclass(frozen=True, slots=True)
class _Miss:
    """Why a layout does not fit. Of several misses the deepest one, which matched most, becomes the error."""

    depth: int
    error: RemoteVAEError


def fit_latent(
    recipe: Recipe, info: VAEInfo, shape: tuple[int, ...], *, model: str, height: int | None, width: int | None
) -> MatchedLayout:
    """The first layout of the recipe that the shape has.

    `height` and `width` are the picture's and are needed by packed layouts, which do not show them.
    *Raises* LatentMismatch (422), MalformedRequest (400) for a packed latent without height and width.
    """
    misses: list[_Miss] = []
    for layout in recipe.layouts:
        found = _fit(layout, recipe, info, shape, model=model, height=height, width=width)
        if isinstance(found, MatchedLayout):
            return found
        misses.append(found)
    deepest = max(misses, key=lambda miss: miss.depth)
    # A latent of three axes may be [c,h,w] or packed [b,tokens,c]. If the recipe accepts both, an unknown layout is
    # reported: a number of channels could mislead.
    either = len(shape) == 3 and sum(len(_axes(layout)) == 3 for layout in recipe.layouts) > 1
    if deepest.depth == 0 or (deepest.depth == 1 and either):
        raise _no_layout(recipe, info, shape, model)
    raise deepest.error


def _no_layout(recipe: Recipe, info: VAEInfo, shape: tuple[int, ...], model: str) -> LatentMismatch:
    layouts = [layout.wire for layout in recipe.layouts]
    return LatentMismatch(
        f"latent of shape {list(shape)} has a layout that model {model!r} does not know; expected one of "
        f"{', '.join(layouts)} with c={info.latent_channels}",
        shape=list(shape),
        layouts=layouts,
        latent_channels=info.latent_channels,
    )


def _fit(
    layout: Rearrange,
    recipe: Recipe,
    info: VAEInfo,
    shape: tuple[int, ...],
    *,
    model: str,
    height: int | None,
    width: int | None,
) -> MatchedLayout | _Miss:
    axes = _axes(layout)
    if len(axes) != len(shape) or any(names == ["1"] and size != 1 for names, size in zip(axes, shape, strict=True)):
        return _Miss(0, LatentMismatch("rank"))
    sizes: dict[str, int] = {**layout.sizes, "c": info.latent_channels}
    for names, size in zip(axes, shape, strict=True):
        if "c" in names and math.prod(sizes[name] for name in names) != size:
            return _Miss(1 if len(names) == 1 else 0, _channels(info, shape, size, names, sizes, model))
    for names, size in zip(axes, shape, strict=True):
        if names[-2:] == ["h", "w"]:
            grid = _unpacked_grid(names, layout, recipe, info, shape, size, model=model, height=height, width=width)
            if isinstance(grid, _Miss):
                return grid
            sizes |= grid
        elif names[0] in ("h", "w") and len(names) == 2:
            patch = sizes[names[1]]
            if size % patch:
                return _Miss(2, _no_whole_patches(shape, size, patch, model))
            sizes[names[0]] = size // patch
        elif len(names) == 1 and names[0] not in ("c", "1"):
            sizes[names[0]] = size
    refusal = _impossible(info, shape, sizes, model)
    if refusal is not None:
        return _Miss(3, refusal)
    ratio = info.spatial_compression_ratio
    return MatchedLayout(
        pattern=layout.pattern,
        sizes=sizes,
        batch=sizes.get("b", 1) * shown_layers(sizes),
        frames=info.frames.of_latent(sizes.get("f", 1)),
        height=sizes["h"] * sizes.get("i", 1) * ratio,
        width=sizes["w"] * sizes.get("j", 1) * ratio,
    )


def shown_layers(sizes: Mapping[str, int]) -> int:
    """Pictures that a latent with layers gives: the first of several layers, their composite, is left out."""
    return max(1, sizes.get("l", 1) - 1)


def example_shape(recipe: Recipe, info: VAEInfo, side: int) -> tuple[int, ...]:
    """The shape of one latent of `side` by `side` cells and one frame, or the fewest possible, in the first layout."""
    layout = recipe.layouts[0]
    height, width = (counts.nearest(side)[-1] for counts in (info.rows, info.columns))
    grid = {"h": height // layout.sizes.get("i", 1), "w": width // layout.sizes.get("j", 1)}
    sizes = {"b": 1, "f": info.frames.latents.least, "1": 1, "c": info.latent_channels, **grid, **layout.sizes}
    return tuple(math.prod(sizes[name] for name in names) for names in _axes(layout))


def _axes(layout: Rearrange) -> list[list[str]]:
    """The names that make up each axis on the wire."""
    return [token.strip("()").split() for token in re.findall(r"\([^)]*\)|\S+", layout.wire)]


def _channels(
    info: VAEInfo, shape: tuple[int, ...], size: int, names: list[str], sizes: Mapping[str, int], model: str
) -> LatentMismatch:
    expected = math.prod(sizes[name] for name in names)
    return LatentMismatch(
        f"latent of shape {list(shape)} has {size} channels; model {model!r} takes {expected}",
        shape=list(shape),
        actual_channels=size,
        latent_channels=info.latent_channels,
    )


def _impossible(info: VAEInfo, shape: tuple[int, ...], sizes: Mapping[str, int], model: str) -> LatentMismatch | None:
    """Why the VAE does not decode this number of frames, rows or columns, if it does not."""
    frames, rows, columns = (
        math.prod(sizes.get(name, 1) for name in names) for names in (("f",), ("h", "i"), ("w", "j"))
    )
    for what, number, counts in (
        ("frames", frames, info.frames.latents),
        ("rows", rows, info.rows),
        ("columns", columns, info.columns),
    ):
        refusal = counts.refusal(number, model)
        if refusal:
            text = f"latent of shape {list(shape)} has {number} {what}; {refusal}"
            return LatentMismatch(text, shape=list(shape), name=what, nearest=list(counts.nearest(number)))
    return None


def _no_whole_patches(shape: tuple[int, ...], size: int, patch: int, model: str) -> LatentMismatch:
    return LatentMismatch(
        f"latent of shape {list(shape)} has a side of {size} cells; model {model!r} takes patches of {patch}x{patch} "
        f"cells, so sides are multiples of {patch}",
        shape=list(shape),
    )


def _unpacked_grid(
    names: list[str],
    layout: Rearrange,
    recipe: Recipe,
    info: VAEInfo,
    shape: tuple[int, ...],
    tokens: int,
    *,
    model: str,
    height: int | None,
    width: int | None,
) -> dict[str, int] | _Miss:
    """Rows and columns of patches in a packed latent; the number of frames or layers follows from the tokens.

    *Source*: diffusers' FluxPipeline._unpack_latents and LTXPipeline._unpack_latents.
    """
    if height is None or width is None:
        text = f"packed latent of shape {list(shape)} needs height and width, the picture's size in pixels"
        return _Miss(3, MalformedRequest(text, shape=list(shape), height=height, width=width))
    group_h, group_w = (max(recipe.patch, layout.sizes.get(axis, 1)) for axis in "ij")
    cell_h, cell_w = (info.spatial_compression_ratio * group for group in (group_h, group_w))
    tokens_h, tokens_w = group_h // layout.sizes.get("i", 1), group_w // layout.sizes.get("j", 1)
    rows, columns = height // cell_h * tokens_h, width // cell_w * tokens_w
    each = rows * columns
    before = names[:-2]  # frames or layers
    if each == tokens or (before and each and tokens % each == 0):
        return {"h": rows, "w": columns, **dict.fromkeys(before, tokens // each)}
    groups = f" groups of {tokens_h}x{tokens_w}" if (tokens_h, tokens_w) != (1, 1) else ""
    text = (
        f"packed latent has {tokens} tokens; model {model!r} at height={height} and width={width} "
        f"needs {height}//{cell_h} x {width}//{cell_w}{groups} = {each}"
    )
    if before:
        text += f" for each {IN_WORDS[before[0]]}, and {tokens} is no multiple of that"
    return _Miss(2, LatentMismatch(text, shape=list(shape), height=height, width=width, expected_tokens=each))
