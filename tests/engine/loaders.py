"""VAEs that do what a test needs; replicas import this module in their own process."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from remote_vae.core.executor import NO_ARGUMENTS, Arguments, Sink
from remote_vae.core.own_code import OwnCode
from remote_vae.core.recipe import Affine, Constants, Rearrange, Recipe
from remote_vae.core.vae_info import VAEInfo
from remote_vae.errors import ModelLoadError
from remote_vae.values import Frames

WEIGHT = 1000
RECIPE = Recipe(
    "test",
    (Rearrange("b c h w -> b c h w"),),
    (Affine(("scaling_factor",)),),
    posterior="mode",
)
FILMS = Recipe("films", (Rearrange("b c f h w -> b c f h w"),), RECIPE.ops, posterior="mode")


def _raise(error: BaseException) -> None:
    raise error


def _break_the_device() -> None:
    """As after an access to memory that is not there: a library's own words, and then nothing but errors."""
    torch.zeros = lambda *words, **more: _raise(RuntimeError("CUDA error: an illegal memory access was encountered"))  # type: ignore[assignment]
    raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")


def _compute(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


MISBEHAVE: dict[str, Callable[[], object]] = {
    "": lambda: None,
    "at once": lambda: None,
    "die": lambda: os._exit(9),
    "die in native code": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "be killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": lambda: time.sleep(600),
    "lose the device": lambda: _raise(torch.AcceleratorError("CUDA error: device-side assert triggered")),
    "break the device": _break_the_device,
    "run out of memory": lambda: _raise(torch.OutOfMemoryError("CUDA out of memory")),
    "raise": lambda: _raise(KeyError("an internal name that nobody outside should see")),
    "compute": lambda: _compute(3.0),
    "compute for ever": lambda: _compute(600.0),
    "sleep": lambda: time.sleep(0.5),
    "exit": lambda: _raise(SystemExit(3)),
    "leave the pipe": lambda: os.closerange(3, 64) or time.sleep(600),
}


class Layer(torch.nn.Module):
    """Takes its time."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        time.sleep(0.5)
        return latent


SLOW = torch.nn.Sequential(*(Layer() for _ in range(8)))


class CopyVAE:
    """Ratio 1, three channels: decoding and encoding hand the tensor on; a first value of 7 makes it misbehave."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, spec: dict[str, Any]) -> None:
        self.misbehaviour = spec.get("misbehaviour", "")
        self.info = VAEInfo(
            3, 1, Frames(), Constants(scaling_factor=0.5), "float32", deterministic=True, weight_bytes=WEIGHT
        )

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        if self.misbehaviour == "tell its cores":
            return torch.full_like(latent, torch.get_num_threads())
        if 7 in latent.flatten(1)[:, 0].tolist():
            if self.misbehaviour == "slow layers":
                return SLOW(latent)  # type: ignore[no-any-return]
            if self.misbehaviour == "give infinity":
                return latent / 0
            MISBEHAVE[self.misbehaviour]()
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


class OneByOne(OwnCode):
    """Gives one frame of a clip after the other, so that half of the rows of the next are there before."""

    def run(
        self, z: torch.Tensor, sink: Sink, checkpoint: Callable[[], None], arguments: Arguments = NO_ARGUMENTS
    ) -> None:
        half = z.shape[3] // 2
        for number, frame in enumerate(z.transpose(1, 2)[0]):
            checkpoint()
            found = self._called(self._module, frame[None], arguments)
            sink(number, 0, found[:, :, :half])
            sink(number, half, found[:, :, half:])


class FilmVAE(CopyVAE):
    """The same for videos, of which a single frame may make it misbehave. With "at once" it gives all at its end."""

    @property
    def decoders(self) -> tuple[OwnCode, ...]:
        kind = OwnCode if self.misbehaviour == "at once" else OneByOne
        return (kind(torch.nn.Identity(), lambda _, latent: self.decode(latent)),)


def load(spec: dict[str, Any]) -> tuple[CopyVAE, Recipe]:
    """`starts` is a file that gets a line for each start; from the second on, "once" refuses to start."""
    if "starts" in spec:
        with Path(spec["starts"]).open("a+") as file:
            file.write(f"{os.getpid()}\n")
            file.seek(0)
            if spec.get("once") and len(file.readlines()) == 2:
                raise ModelLoadError("the weights are gone", place="somewhere")
    if spec.get("misbehaviour") == "refuse":
        raise ModelLoadError("the weights are of another architecture", place="somewhere")
    if spec.get("misbehaviour") == "find no room":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 320.00 MiB.")
    if spec.get("misbehaviour") == "crash at load":
        os._exit(3)
    return (FilmVAE(spec), FILMS) if spec.get("film") else (CopyVAE(spec), RECIPE)
