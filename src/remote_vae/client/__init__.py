"""The client: light, without torch, for any Remote VAE server."""

from remote_vae.client.aio import AsyncClient
from remote_vae.client.functions import remote_decode, remote_encode
from remote_vae.client.sync import Client

__all__ = ["AsyncClient", "Client", "remote_decode", "remote_encode"]
