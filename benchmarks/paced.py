"""A VAE of videos that computes nothing: its frames come at a fixed pace, as from a device beside the CPU.

Only its first latent value is read: the frames that come in a second; 0 if they come at once.
"""

import math
import time
from collections.abc import Callable

import torch

from remote_vae.core.executor import NO_ARGUMENTS, Arguments, Sink
from remote_vae.core.own_code import OwnCode
from remote_vae.core.recipe import Constants, Recipe
from remote_vae.core.vae_info import VAEInfo
from remote_vae.models.spec import ModelSpec
from remote_vae.values import Frames

CHANNELS, RATIO, GROUP = 16, 8, 4  # of Wan 2.1
GRAIN = 0.02  # of the range of a pixel, as a film has
GRAINS = 8


class Paced(OwnCode):
    """Gives a group of frames when its time has come, however long the group before it took to be taken."""

    def run(
        self, z: torch.Tensor, sink: Sink, checkpoint: Callable[[], None], arguments: Arguments = NO_ARGUMENTS
    ) -> None:
        rate, began, done = float(z.flatten()[0]) or math.inf, time.perf_counter(), 0
        scene = Scene(z.shape[-2] * RATIO, z.shape[-1] * RATIO)
        for count in (1, *[GROUP] * (z.shape[2] - 1)):
            frames = torch.stack([scene.frame(done + number) for number in range(count)])
            checkpoint()
            time.sleep(max(0.0, began + (done + count) / rate - time.perf_counter()))
            sink(done, 0, frames)
            done += count


class Scene:
    """Bands of colour that drift across the picture, under grain."""

    def __init__(self, height: int, width: int) -> None:
        rows, columns = torch.linspace(0, 6, height)[:, None], torch.linspace(0, 10, 2 * width)
        bands = [torch.sin(rows * (1 + channel / 3) + columns) * 0.8 for channel in range(3)]
        self._wide, self._width = torch.stack(bands), width
        draw = torch.Generator().manual_seed(0)
        self._grain = torch.randn(GRAINS, 3, height, width, generator=draw) * GRAIN

    def frame(self, number: int) -> torch.Tensor:
        """*Shapes*: [3,H,W]."""
        first = 2 * number % self._width
        return self._wide[:, :, first : first + self._width] + self._grain[number % GRAINS]


class PacedVAE:
    """Has the factors of Wan 2.1."""

    dtype = torch.float32
    device = torch.device("cpu")
    encoders = ()
    decoders = (Paced(torch.nn.Identity(), lambda _, latent: latent),)
    info = VAEInfo(
        CHANNELS,
        RATIO,
        Frames(GROUP),
        Constants(latents_mean=(0.0,) * CHANNELS, latents_std=(1.0,) * CHANNELS),
        "float32",
        deterministic=True,
        config={"_class_name": "AutoencoderKLWan"},
    )


def load(found: dict[str, object]) -> tuple[PacedVAE, Recipe]:
    """What a replica calls."""
    return PacedVAE(), ModelSpec.from_json(found).resolve_recipe()
