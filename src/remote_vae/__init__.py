"""A self-hosted Remote VAE: latents to pictures and video, pictures to latents, over HTTP.

The public names: `remote_decode`, `remote_encode`, `Client`, `AsyncClient`, `RemoteVAE`, `DecodeQueue`,
`AsyncDecodeQueue`, `EncodeQueue`, `AsyncEncodeQueue`, `preview_callback`, and every error in `remote_vae.errors`.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remote_vae.client import (
        AsyncClient,
        AsyncDecodeQueue,
        AsyncEncodeQueue,
        Client,
        DecodeQueue,
        EncodeQueue,
        preview_callback,
        remote_decode,
        remote_encode,
    )
    from remote_vae.client.pipeline import RemoteVAE

__version__ = version("remote-vae")
__all__ = [
    "AsyncClient",
    "AsyncDecodeQueue",
    "AsyncEncodeQueue",
    "Client",
    "DecodeQueue",
    "EncodeQueue",
    "RemoteVAE",
    "__version__",
    "preview_callback",
    "remote_decode",
    "remote_encode",
]


def __getattr__(name: str) -> object:
    """Imports the client when one of its names is used, so that the server's processes do without it."""
    if name in __all__:
        from remote_vae import client

        return getattr(client, name)
    raise AttributeError(f"module 'remote_vae' has no attribute {name!r}")
