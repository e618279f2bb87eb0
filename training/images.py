"""The demo model's training pictures: those that come with scikit-image, and procedural ones.

Few photographs are at hand, so each is kept at several sizes and every crop is stretched, turned, mirrored and
recoloured: without this, a model learns the photographs by heart. Procedural pictures add the edges, textures and
colours that those few lack.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

Picture = NDArray[np.uint8]

PHOTOGRAPHS = (
    "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "motorcycle_right.png",
    "rocket.jpg",
)  # fmt: skip
OTHERS = (
    "brick.png", "cell.png", "coins.png", "color.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png",
    "logo.png", "moon.png", "page.png", "retina.jpg", "text.png",
)  # fmt: skip
SHARES = (0.55, 0.22, 0.23)  # of photographs, others and procedural pictures among the crops
SCALES = (1.0, 0.75, 0.5, 0.35)  # a smaller picture has more detail per pixel
REACH = 1.5
SMALLEST = 168  # the shorter side of a picture that is worth keeping
SIDE = 320  # of a procedural picture
KINDS = ("leaves", "leaves", "leaves", "noise", "stripes", "text")


class Pictures:
    """The pool of pictures, and random batches from it."""

    def __init__(self, rng: np.random.Generator, procedural: int) -> None:
        self._rng = rng
        groups = [list(bundled(PHOTOGRAPHS)), [*bundled(OTHERS), _faces()], [_drawn(rng) for _ in range(procedural)]]
        self._pool = [picture for group in groups for picture in group]
        weights = []
        for share, group in zip(SHARES, groups, strict=True):
            sizes = np.array([np.sqrt(picture.size) for picture in group])
            weights.append(share * sizes / sizes.sum())
        self._weights = np.concatenate(weights)

    def batch(self, count: int, side: int) -> Tensor:
        """Random crops in [-1, 1], turned, mirrored, recoloured and now and then mixed; [count,3,side,side]."""
        rng = self._rng
        chosen = rng.choice(len(self._pool), size=count, p=self._weights)
        crops = torch.from_numpy(np.stack([self._crop(self._pool[index], side) for index in chosen]))
        values = crops.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        values = _recolour(values, rng)
        share = torch.from_numpy(np.where(rng.random(count) < 0.1, rng.uniform(0.5, 1, count), 1).astype(np.float32))
        values = torch.lerp(values.flip(0), values, share[:, None, None, None])
        return values.clamp_(-1, 1).contiguous(memory_format=torch.channels_last)

    def _crop(self, picture: Picture, side: int) -> Picture:
        """A part of any size from `side` up to REACH times it and of any shape near a square, never magnified."""
        sizes = [self._rng.uniform(side, min(REACH * side, length)) for length in picture.shape[:2]]
        y, x = (self._rng.uniform(0, length - size) for length, size in zip(picture.shape[:2], sizes, strict=True))
        left, top, right, bottom = int(x), int(y), math.ceil(x + sizes[1]), math.ceil(y + sizes[0])
        part, box = (
            Image.fromarray(picture[top:bottom, left:right]),
            (x - left, y - top, x - left + sizes[1], y - top + sizes[0]),
        )
        scaled = np.asarray(part.resize((side, side), Image.Resampling.LANCZOS, box=box))
        crop = np.rot90(scaled, int(self._rng.integers(4)))
        crop = crop[:, ::-1] if self._rng.random() < 0.5 else crop
        return crop[..., self._rng.permutation(3)] if self._rng.random() < 0.5 else crop


def _recolour(values: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the crops with another saturation, contrast and cast."""
    count = len(values)
    changed = rng.random((count, 1)) < 0.5
    saturation = np.where(changed, rng.uniform(0.3, 1.5, (count, 1)), 1)
    gain = np.where(changed, rng.uniform(0.6, 1.25, (count, 1)) * rng.uniform(0.85, 1.15, (count, 3)), 1)
    offset = np.where(changed, rng.uniform(-0.2, 0.2, (count, 3)), 0)
    saturation, gain, offset = (
        torch.from_numpy(factor.astype(np.float32))[:, :, None, None] for factor in (saturation, gain, offset)
    )
    return torch.lerp(values.mean(1, keepdim=True).expand_as(values), values, saturation) * gain + offset


def bundled(names: tuple[str, ...]) -> Iterator[Picture]:
    """Scikit-image's pictures of these names, each at several sizes."""
    folder = Path(skimage.__file__).parent / "data"
    for name in names:
        picture = Image.open(folder / name).convert("RGB")
        for scale in SCALES:
            width, height = (int(side * scale) for side in picture.size)
            if min(width, height) >= SMALLEST:
                yield np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def _faces() -> Picture:
    """A sheet of the 100 faces of 25x25 pixels in scikit-image's small set."""
    faces = np.load(Path(skimage.__file__).parent / "data/lfw_subset.npy")[:100]
    sheet = (faces.reshape(10, 10, 25, 25).transpose(0, 2, 1, 3).reshape(250, 250) * 255).astype(np.uint8)
    return np.repeat(sheet[:, :, None], 3, axis=2)


def _drawn(rng: np.random.Generator) -> Picture:
    """A procedural picture."""
    makers = {"leaves": _leaves, "noise": _noise, "stripes": _stripes, "text": _text}
    return makers[str(rng.choice(KINDS))](rng)


def _colour(values: NDArray[np.generic]) -> tuple[int, ...]:
    return tuple(int(value) for value in np.clip(values, 0, 255))


def _leaves(rng: np.random.Generator) -> Picture:
    """Overlapping shapes with sizes by a power law. *Source*: Lee, Mumford and Huang, 2001: these have the statistics
    of occlusion in photographs.
    """
    greys = rng.integers(0, 256, (12, 1))
    palette = greys + (rng.integers(0, 256, (12, 3)) - greys) * rng.uniform(0.1, 0.6)
    canvas = Image.new("RGB", (SIDE, SIDE), _colour(palette[0]))
    draw = ImageDraw.Draw(canvas)
    for _ in range(900):
        radius = min(2 / (1 - rng.random()), SIDE / 3)
        x, y = rng.random(2) * SIDE
        ink = _colour(palette[rng.integers(12)] + rng.normal(0, 25) + rng.normal(0, 8, 3))
        if rng.random() < 0.5:
            draw.ellipse((x - radius, y - radius * 0.6, x + radius, y + radius * 0.6), fill=ink)
        else:
            turns = rng.random(4) * 2 * np.pi
            draw.polygon([(x + radius * np.cos(turn), y + radius * np.sin(turn)) for turn in turns], fill=ink)
    texture = _pink(rng, rng.uniform(0.5, 1.2))[..., None] * rng.uniform(0, 16)
    return np.clip(np.asarray(canvas) + texture, 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator) -> Picture:
    """1/f noise whose three channels are correlated, as they are in photographs."""
    layers = np.stack([_pink(rng, rng.uniform(0.8, 1.6)) for _ in range(3)], axis=-1)
    mix = 0.8 * np.ones((3, 3)) / 3 + 0.12 * rng.normal(0, 1, (3, 3))
    return np.clip(128 + 45 * layers @ mix, 0, 255).astype(np.uint8)


def _pink(rng: np.random.Generator, exponent: float) -> NDArray[np.float64]:
    fy, fx = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    amplitude = 1 / np.maximum(np.hypot(fy, fx), 1 / SIDE) ** exponent
    phase = np.exp(2j * np.pi * rng.random(amplitude.shape))
    field: NDArray[np.float64] = np.fft.irfft2(amplitude * phase, s=(SIDE, SIDE))
    return (field - field.mean()) / field.std()


def _stripes(rng: np.random.Generator) -> Picture:
    """Waves or hard stripes of two colours over a gradient."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    angle, frequency = rng.random() * np.pi, 2 ** rng.uniform(1, 6)
    wave = np.sin(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)))
    wave = np.sign(wave) if rng.random() < 0.5 else wave
    low, high = rng.integers(0, 256, (2, 3))
    ramp = (x * rng.normal() + y * rng.normal())[..., None] * 40
    return np.clip(low + (high - low) * (wave[..., None] + 1) / 2 + ramp, 0, 255).astype(np.uint8)


def _text(rng: np.random.Generator) -> Picture:
    paper, ink = (_colour(values) for values in rng.integers(0, 256, (2, 3)))
    canvas = Image.new("RGB", (SIDE, SIDE), paper)
    draw = ImageDraw.Draw(canvas)
    for line in range(24):
        letters = "".join(chr(code) for code in rng.integers(33, 127, 60))
        draw.text((int(rng.integers(-20, 5)), line * 14), letters, fill=ink)
    return np.asarray(canvas.rotate(float(rng.uniform(-20, 20)), Image.Resampling.BILINEAR, fillcolor=paper))
