"""VAEs that do what a test needs; replicas import this module in their own process."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from remote_vae.core.facts import Facts
from remote_vae.core.recipe import Affine, Constants, Decode, PixelAffine, Rearrange, Recipe
from remote_vae.errors import ModelLoadError

RECIPE = Recipe(
    "test",
    "image",
    (Rearrange("b c h w -> b c h w"),),
    (Affine(("scaling_factor",)), Decode(), PixelAffine()),
    posterior="mode",
)


class CopyVAE:
    """Ratio 1, three channels: decoding and encoding hand the tensor on; a pixel of 7 calls `misbehave`."""

    dtype = torch.float32
    device = torch.device("cpu")
    decoder = encoder = None

    def __init__(self, spec: dict[str, Any]) -> None:
        self.misbehaviour = spec.get("misbehaviour", "")
        self.facts = Facts(3, 1, 1, Constants(scaling_factor=0.5), "float32", deterministic=True)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        if float(latent.flatten()[0]) == 7:
            self.misbehave()
        return latent

    def misbehave(self) -> None:
        if self.misbehaviour == "die":
            os._exit(9)
        if self.misbehaviour == "raise":
            raise KeyError("an internal name that nobody outside should see")
        if self.misbehaviour == "sleep":
            time.sleep(0.5)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    @contextmanager
    def upcast(self) -> Iterator[None]:
        yield


def load(spec: dict[str, Any]) -> tuple[CopyVAE, Recipe]:
    if spec.get("misbehaviour") == "refuse":
        raise ModelLoadError("the weights are of another architecture", place="somewhere")
    if spec.get("misbehaviour") == "crash at load":
        os._exit(3)
    return CopyVAE(spec), RECIPE
