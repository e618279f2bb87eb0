"""What `roofline.py` counts: models without weights, the ways to run them, and times that others published."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from roofline_account import Account, counted

from remote_vae.core.live_bytes import LiveBytes
from remote_vae.models.families import family_of, find_model
from remote_vae.models.family import Family
from remote_vae.models.vae import DiffusersVAE

EAGER: Final = "diffusers"
CHANNELS_LAST: Final = "diffusers-channels-last"


@dataclass(frozen=True, slots=True)
class Case:
    """One decoding or encoding. *Units*: sides in pixels, frames of the video."""

    model: str
    height: int
    width: int
    frames: int = 1
    dtype: str = "bfloat16"
    direction: str = "decode"

    @property
    def size(self) -> str:
        return f"{self.height}x{self.width}" + (f", {self.frames} frames" if self.frames > 1 else "")


@dataclass(frozen=True, slots=True)
class Counted:
    """What a way to run a case launches, and the most bytes of tensors that are alive, weights not counted."""

    way: str
    account: Account
    peak_bytes: int


PICTURES: Final = tuple(
    Case(model, side, side) for model in ("sd1", "sdxl", "flux1", "flux2", "qwen-image") for side in (512, 1024, 2048)
)
VIDEOS: Final = (Case("wan2.1", 480, 832, 81),)


@dataclass(frozen=True, slots=True)
class Published:
    """A time that others measured with diffusers' code or its like, in eager mode."""

    card: str
    case: Case
    way: str
    seconds: float
    source: str


_ANNOUNCEMENT: Final = "announcement of the remote endpoints"
_SGLANG: Final = "sgl-project/sglang #33451, before"
PUBLISHED: Final = (
    *(Published("H200", Case("flux2", side, side), EAGER, seconds, _SGLANG)
      for side, seconds in ((1024, 0.0976), (2048, 0.4372))),
    Published("H200", Case("flux1", 1024, 1024), EAGER, 0.0899, "sgl-project/sglang #33818, before"),
    Published("H200", Case("flux2", 1024, 1024), CHANNELS_LAST, 0.141, "sgl-project/sglang, a comment"),
    *(Published("RTX 4090", Case("sd1", side, side, dtype="float16"), EAGER, seconds, _ANNOUNCEMENT)
      for side, seconds in ((512, 0.031), (1024, 0.148))),
    *(Published("RTX 4090", Case("sdxl", side, side, dtype="float32"), EAGER, seconds, _ANNOUNCEMENT)
      for side, seconds in ((512, 0.057), (1024, 0.256))),
    *(Published("RTX 4090", Case("sd1", side, side, dtype="float16", direction="encode"), EAGER, seconds, _ANNOUNCEMENT)
      for side, seconds in ((512, 0.015), (1024, 0.078), (2048, 0.402))),
    *(Published("H100", Case("qwen-image", side, side), EAGER, seconds, "LightX2V, PyTorch")
      for side, seconds in ((512, 0.0176), (1024, 0.0682), (1328, 0.1219))),
)  # fmt: skip


def ways(case: Case) -> list[str]:
    """diffusers' own code and our plans; each plan once, with its larger blocks."""
    found = model_without_values(case.model, case.dtype)
    executors = found.decoders if case.direction == "decode" else found.encoders
    ours = dict.fromkeys(executor.name for executor in executors if type(executor).__name__ in ("Strips", "Blocks"))
    last = () if case.frames > 1 or case.model.startswith("qwen") else (CHANNELS_LAST,)
    return [EAGER, *last, *ours]


@torch.inference_mode()
def count(case: Case, way: str) -> Counted:
    """Runs a case on meta tensors."""
    vae, (module, family) = model_without_values(case.model, case.dtype), _module(case.model, case.dtype)
    decoding = case.direction == "decode"
    given = _given(vae, case)
    own: Callable[[Any, torch.Tensor], object] | None = family.decode if decoding else family.encode
    layout = torch.channels_last if way == CHANNELS_LAST else torch.contiguous_format
    if given.ndim == 4:
        torch.nn.Module.to(module, memory_format=layout)  # type: ignore[call-overload]
    with LiveBytes() as live, counted() as account:
        if way in (EAGER, CHANNELS_LAST):
            assert own is not None
            own(module, given.contiguous(memory_format=layout) if given.ndim == 4 else given)
        else:
            executors = vae.decoders if decoding else vae.encoders
            found = next(executor for executor in executors if executor.name == way)
            found.run(given, lambda first, row, block: None, lambda: None)
    return Counted(way, account, live.peak)


def _given(vae: DiffusersVAE, case: Case) -> torch.Tensor:
    """The latent, or the picture."""
    info, dtype = vae.info, getattr(torch, case.dtype)
    channels, frames, sides = info.pixel_channels, case.frames, [case.height, case.width]
    if case.direction == "decode":
        channels, frames = info.latent_channels, info.frames.latent(case.frames)
        sides = [side // info.spatial_compression_ratio for side in sides]
    video = any(isinstance(part, torch.nn.Conv3d) for part in vae.module.modules())
    return torch.empty(1, channels, *([frames] if video else []), *sides, dtype=dtype, device="meta")


@cache
def _module(name: str, dtype: str) -> tuple[torch.nn.Module, Family]:
    """diffusers' module without values."""
    model = find_model(name)
    if model is None or model.config is None:
        raise SystemExit(f"{name!r} is no model of the registry")
    family = family_of(model)
    with torch.device("meta"):
        module = family.load_class()(**model.config)
    family.prepare(module)
    torch.nn.Module.to(module.eval().requires_grad_(False), getattr(torch, dtype))
    return module, family


@cache
def model_without_values(name: str, dtype: str) -> DiffusersVAE:
    """Ours on a module of its own, because it changes the layout of weights."""
    module, family = _module.__wrapped__(name, dtype)
    _put_buffers(module, "cpu")  # some are read
    found = DiffusersVAE(module, source="", revision="", family=family)
    _put_buffers(module, "meta")  # and some run beside weights
    return found


def _put_buffers(module: torch.nn.Module, device: str) -> None:
    for part in module.modules():
        for key, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[key] = torch.ones(buffer.shape, dtype=buffer.dtype, device=device)
