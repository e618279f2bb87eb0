"""The client of any Remote VAE server. It does not import torch; only RemoteVAE, a part for diffusers, does."""

from typing import TYPE_CHECKING

from remote_vae.client.clients import AsyncClient, Client
from remote_vae.client.functions import remote_decode, remote_encode
from remote_vae.client.preview import preview_callback
from remote_vae.client.queues import AsyncDecodeQueue, AsyncEncodeQueue, DecodeQueue, EncodeQueue

if TYPE_CHECKING:
    from remote_vae.client.pipeline import RemoteVAE

__all__ = [
    "AsyncClient",
    "AsyncDecodeQueue",
    "AsyncEncodeQueue",
    "Client",
    "DecodeQueue",
    "EncodeQueue",
    "RemoteVAE",
    "preview_callback",
    "remote_decode",
    "remote_encode",
]


def __getattr__(name: str) -> object:
    """Imports torch and diffusers when RemoteVAE is first used, and not before; *raises* ImportError without them."""
    if name == "RemoteVAE":
        try:
            from remote_vae.client import pipeline
        except ImportError as exc:
            raise ImportError(f"RemoteVAE needs torch and diffusers ({exc}); pip install torch diffusers") from exc
        return pipeline.RemoteVAE
    raise AttributeError(f"module 'remote_vae.client' has no attribute {name!r}")
