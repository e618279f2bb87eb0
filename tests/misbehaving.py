"""A VAE that copies, and does worse when a latent's first value asks for it; run as a program it is a server.

Replicas import this module in their own process. Its server takes every setting from the environment.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from remote_vae.core.executor import NO_ARGUMENTS, Arguments, Sink
from remote_vae.core.own_code import OwnCode
from remote_vae.core.recipe import Constants, Recipe
from remote_vae.core.vae_info import VAEInfo
from remote_vae.models.families import find_recipe
from remote_vae.values import Frames

DIE, SLEEP, RAISE, HANG = 7.0, 8.0, 9.0, 10.0
LAYERS = {11.0: 10, 12.0: 40}
SLEEP_SECONDS, LAYER_SECONDS = 1.0, 0.2


class Layer(torch.nn.Module):
    """Takes its time, after which a job can be cancelled."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        time.sleep(LAYER_SECONDS)
        return latent


LAYER = Layer()


class CopyVAE:
    """Ratio 1, three channels: decoding and encoding hand the tensor on."""

    dtype = torch.float32
    device = torch.device("cpu")
    info = VAEInfo(
        3,
        1,
        Frames(),
        Constants(scaling_factor=0.5),
        "float32",
        deterministic=True,
        config={"_class_name": "AutoencoderKL"},
    )

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        firsts = latent.flatten(1)[:, 0].tolist()  # of every latent
        if DIE in firsts:
            os._exit(9)
        if SLEEP in firsts:
            time.sleep(SLEEP_SECONDS)
        if HANG in firsts:
            time.sleep(300)
        if RAISE in firsts:
            raise KeyError("an internal name that nobody outside should see")
        for _ in range(max(LAYERS.get(first, 0) for first in firsts)):
            latent = LAYER(latent)
        return latent

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels

    @property
    def decoders(self) -> tuple[OwnCode, ...]:
        return (OwnCode(torch.nn.Identity(), lambda _, latent: self.decode(latent)),)

    @property
    def encoders(self) -> tuple[OwnCode, ...]:
        return (OwnCode(torch.nn.Identity(), lambda _, pixels: self.encode(pixels)),)

    @contextmanager
    def upcast(self) -> Iterator[None]:
        yield


class FrameByFrame(OwnCode):
    """Gives one frame of a video after the other."""

    def run(
        self, z: torch.Tensor, sink: Sink, checkpoint: Callable[[], None], arguments: Arguments = NO_ARGUMENTS
    ) -> None:
        for number, frame in enumerate(z[0].transpose(0, 1)):
            checkpoint()
            sink(number, 0, self._called(self._module, frame[None], arguments))


class FilmVAE(CopyVAE):
    """The same for videos, of which a single frame may make it misbehave."""

    @property
    def decoders(self) -> tuple[OwnCode, ...]:
        return (FrameByFrame(torch.nn.Identity(), lambda _, latent: self.decode(latent)),)


def load(spec: dict[str, Any]) -> tuple[CopyVAE, Recipe]:
    if spec["name"] == "slow-to-load":
        time.sleep(3)
    if spec["name"] == "never-loads":
        time.sleep(300)
    if spec["name"] == "films":
        return FilmVAE(), find_recipe("hunyuanvideo")
    return CopyVAE(), find_recipe("sd1")


def leak(nbytes: int) -> None:
    """Makes the server keep so many bytes of every request."""
    from remote_vae.server.access_log import RequestRecorder

    kept: list[bytearray] = []
    report = RequestRecorder._report

    def report_and_keep(self: RequestRecorder, record: Any, **trace: Any) -> None:
        kept.append(bytearray(b"x" * nbytes))
        report(self, record, **trace)

    RequestRecorder._report = report_and_keep  # type: ignore[method-assign]


if __name__ == "__main__":
    from remote_vae.server.settings import Settings

    if nbytes := int(os.environ.pop("REMOTE_VAE_LEAK", "0")):
        leak(nbytes)
    if os.environ.pop("REMOTE_VAE_FAULTS", ""):
        import faulty

        faulty.install()
    replicas = int(os.environ.get("TEST_RAY_REPLICAS", "0"))
    if replicas:
        from remote_vae.deploy.ray_local import Scale, serve

        serve(Settings(), scale=Scale(replicas, replicas), loader="misbehaving:load")
    else:
        from remote_vae.server.run import serve as serve_alone

        serve_alone(Settings(), loader="misbehaving:load")
