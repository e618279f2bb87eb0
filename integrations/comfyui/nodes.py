"""The nodes: load a VAE object, decode, decode a video, encode. The token comes from REMOTE_VAE_API_KEY."""

import os
import time
from typing import Any

import torch

from remote_vae import Client
from remote_vae.client.model import RemoteModel
from remote_vae.errors import InvalidValue, LatentMismatch, RemoteVAEError

from .logs import host_of
from .vae import RemoteComfyVAE
from .waiting import waited

DEFAULT_URL = os.environ.get("REMOTE_VAE_ENDPOINT", "http://127.0.0.1:8000")
CA_FILE = ("STRING", {"default": "", "tooltip": "PEM file of the private authority of the server's certificate."})
FIRST = "the server's first"
FRESH_SECONDS = 5.0
PROBE_SECONDS = 3.0

_listed: dict[tuple[str, str], tuple[float, list[str] | RemoteVAEError]] = {}


def list_models(url: str, ca_file: str = "") -> list[str] | RemoteVAEError:
    """The names that a server has, or why it does not say. The answer is kept for a few seconds."""
    at, found = _listed.get((url, ca_file), (float("-inf"), []))
    if time.monotonic() - at < FRESH_SECONDS:
        return found
    try:
        with Client(url, timeout=PROBE_SECONDS, retries=1, ca_file=ca_file or None) as client:
            found = [card["name"] for card in client.models()]
    except RemoteVAEError as error:
        found = error
    _listed[url, ca_file] = time.monotonic(), found
    return found


def server_inputs() -> dict[str, Any]:
    """Where the server is, and a drop-down of what it serves."""
    found = list_models(DEFAULT_URL)
    names = [] if isinstance(found, RemoteVAEError) else found
    tooltip = "What the server at REMOTE_VAE_ENDPOINT serves; reload the page to ask it again."
    return {
        "url": ("STRING", {"default": DEFAULT_URL, "tooltip": "The address of a remote-vae server."}),
        "model": ([FIRST, *names], {"tooltip": tooltip}),
    }


def check_inputs(url: str, model: str, ca_file: str = "") -> bool | str:
    """True, or what is wrong, which ComfyUI shows at the node before anything runs."""
    found = list_models(url, ca_file)
    if isinstance(found, RemoteVAEError):
        return f"{host_of(url)}: {found.message}"
    if model not in (FIRST, *found):
        return f"{host_of(url)} does not serve model {model!r}; it serves {', '.join(found)}"
    return True


def open_model(url: str, model: str, ca_file: str) -> RemoteModel:
    return waited(lambda _: RemoteModel(url, model=None if model == FIRST else model, ca_file=ca_file or None))


class RemoteNode:
    """What the nodes have in common."""

    CATEGORY = "remote-vae"
    FUNCTION = "run"

    @classmethod
    def VALIDATE_INPUTS(  # noqa: N802  # ComfyUI's name
        cls, url: str | None = None, model: str | None = None, ca_file: str | None = None
    ) -> bool | str:
        """What comes from another node is not known yet, and is checked when the node runs."""
        return True if url is None or model is None else check_inputs(url, model, ca_file or "")


class LoadRemoteVAE(RemoteNode):
    """A VAE for any node that takes one."""

    RETURN_TYPES = ("VAE",)
    DESCRIPTION = "A VAE at work on a server, for every node that takes a VAE."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        return {"required": server_inputs(), "optional": {"ca_file": CA_FILE}}

    def run(self, url: str, model: str, ca_file: str = "") -> tuple[RemoteComfyVAE]:
        return (RemoteComfyVAE(open_model(url, model, ca_file)),)


class DecodeRemotely(RemoteNode):
    """Latents of pictures or of a video to pictures, however large, without tiles."""

    RETURN_TYPES = ("IMAGE",)
    DESCRIPTION = "Decodes on a server, without tiles at any size. The frames of a video come one after the other."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        return {"required": {"samples": ("LATENT",), **server_inputs()}, "optional": {"ca_file": CA_FILE}}

    def run(self, samples: dict[str, Any], url: str, model: str, ca_file: str = "") -> tuple[torch.Tensor]:
        with open_model(url, model, ca_file) as remote:
            pictures = RemoteComfyVAE(remote).decode(samples["samples"])
        return (pictures.reshape(-1, *pictures.shape[-3:]),)


class DecodeVideoRemotely(RemoteNode):
    """The latent of a video to its frames, which travel in eight bits, a quarter of their floats."""

    RETURN_TYPES = ("IMAGE",)
    DESCRIPTION = "Decodes a video on a server to frames of eight bits: a quarter of the bytes of Remote VAE Decode."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        return {"required": {"samples": ("LATENT",), **server_inputs()}, "optional": {"ca_file": CA_FILE}}

    def run(self, samples: dict[str, Any], url: str, model: str, ca_file: str = "") -> tuple[torch.Tensor]:
        latent = samples["samples"]
        with open_model(url, model, ca_file) as remote:
            stage = RemoteComfyVAE(remote).first_stage_model
            if not remote.is_video or stage.latents.as_batch:
                raise LatentMismatch(f"model {remote.name!r} gives pictures; take Remote VAE Decode")
            frames = torch.cat([stage.decode_levels(video) for video in latent.split(1)])
        return (frames.float() / 255,)


class EncodeRemotely(RemoteNode):
    """Pictures to a latent."""

    RETURN_TYPES = ("LATENT",)
    DESCRIPTION = "Encodes on a server. A video model takes the batch as the frames of one video, or of several."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        tooltip = "Frames of each video in the batch, for a video model; 0 if the batch is one video."
        frames = ("INT", {"default": 0, "min": 0, "max": 1 << 16, "tooltip": tooltip})
        return {
            "required": {"pixels": ("IMAGE",), **server_inputs()},
            "optional": {"frames": frames, "ca_file": CA_FILE},
        }

    def run(
        self, pixels: torch.Tensor, url: str, model: str, frames: int = 0, ca_file: str = ""
    ) -> tuple[dict[str, torch.Tensor]]:
        with open_model(url, model, ca_file) as remote:
            if frames and remote.is_video:
                pixels = _videos(pixels, frames)
            return ({"samples": RemoteComfyVAE(remote).encode(pixels)},)


def _videos(pixels: torch.Tensor, frames: int) -> torch.Tensor:
    """*Shapes*: [B*F,H,W,C] -> [B,F,H,W,C]; *raises* InvalidValue."""
    if len(pixels) % frames:
        raise InvalidValue(
            f"the batch has {len(pixels)} pictures; expected a multiple of frames={frames}, or frames=0 for one video",
            frames=frames,
        )
    return pixels.unflatten(0, (-1, frames))
