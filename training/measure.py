"""What a round trip costs, in dB, on two photographs that training never sees; and what a linear code would cost."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from images import PHOTOGRAPHS, Picture, bundled
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images

Array = NDArray[np.float64]
PATCH = 8  # the model's spatial ratio


def measure(model: AutoencoderKL) -> dict[str, float]:
    """PSNR of a round trip through the posterior's mode, pictures as uint8, by name of photograph."""
    return _each(lambda picture: _round_trip(model.eval(), picture))


def measure_linear(components: int) -> tuple[dict[str, float], dict[str, float]]:
    """The same for the best linear code of 8x8 patches: fitted on training's photographs, and on the picture itself.

    The second knows the answer beforehand; no code that is fixed in advance can do so.
    """
    learnt = _fit(np.concatenate([_patches(picture) for picture in bundled(PHOTOGRAPHS)]), components)
    return (
        _each(lambda picture: _project(_patches(picture), *learnt)),
        _each(lambda picture: _project(_patches(picture), *_fit(_patches(picture), components))),
    )


def _each(psnr: Callable[[Picture], float]) -> dict[str, float]:
    data = load_sample_images()
    names = (Path(name).stem for name in data.filenames)
    return {name: round(psnr(_whole(picture)), 2) for name, picture in zip(names, data.images, strict=True)}


def _whole(picture: Picture) -> Picture:
    """The part of the picture that whole patches cover."""
    height, width = (side - side % PATCH for side in picture.shape[:2])
    return picture[:height, :width].copy()


@torch.no_grad()
def _round_trip(model: AutoencoderKL, picture: Picture) -> float:
    source = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    decoded = model.decode(model.encode(source / 127.5 - 1).latent_dist.mode()).sample
    return _psnr((decoded / 2 + 0.5).numpy() * 255, source.numpy())


def _patches(picture: Picture) -> Array:
    rows, columns = (side // PATCH for side in _whole(picture).shape[:2])
    blocks = _whole(picture).reshape(rows, PATCH, columns, PATCH, 3).transpose(0, 2, 1, 3, 4)
    return blocks.reshape(rows * columns, PATCH * PATCH * 3).astype(np.float64)


def _fit(patches: Array, components: int) -> tuple[Array, Array]:
    _, vectors = np.linalg.eigh(np.cov(patches.T))
    return patches.mean(0), vectors[:, ::-1][:, :components]


def _project(patches: Array, mean: Array, basis: Array) -> float:
    return _psnr((patches - mean) @ basis @ basis.T + mean, patches)


def _psnr(found: NDArray[np.floating], source: NDArray[np.floating]) -> float:
    error = np.clip(np.round(found), 0, 255) - source
    return float(10 * np.log10(255**2 / np.mean(error**2)))
