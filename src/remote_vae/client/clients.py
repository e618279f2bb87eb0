"""Client and AsyncClient: a Remote VAE server, for code that blocks and for code that awaits."""

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar, Unpack

import httpx2
from PIL import Image

from remote_vae.client.calls import (
    Answer,
    decode_request,
    encode_request,
    post,
    read_decoded,
    read_encoded,
    read_models,
    read_ready,
)
from remote_vae.client.endpoint import read_endpoint
from remote_vae.client.latents import AnyTensor
from remote_vae.client.network import AsyncNetwork, BlockingNetwork, Network, run
from remote_vae.client.retry import GIB, Bounds, send
from remote_vae.errors import ClientTimeout, ConnectionFailed
from remote_vae.protocol.messages import Reply
from remote_vae.protocol.options import DecodeArguments, EncodeArguments
from remote_vae.values import Buffer

H = TypeVar("H", httpx2.Client, httpx2.AsyncClient)


class Calls(Generic[H]):
    """What both clients share: the constructor, and the calls to a server as coroutines over a network."""

    _network_type: Callable[..., Network]

    def __init__(
        self,
        endpoint: str,
        *,
        token: str | None = None,
        timeout: float = 300.0,
        retries: int = 3,
        http: H | None = None,
        proxy: str | None = None,
        max_reply_bytes: int = GIB,
    ) -> None:
        self._endpoint = read_endpoint(endpoint, token=token)
        self._bounds = Bounds(timeout=timeout, tries=retries, max_reply_bytes=max_reply_bytes)
        self._network = self._network_type(self._endpoint.url, http=http, proxy=proxy)

    async def _decode(self, latent: AnyTensor, options: DecodeArguments) -> Answer:
        request = decode_request(latent, options)
        reply = await send(self._network, post(self._endpoint, request), self._bounds)
        return read_decoded(request, reply, like=latent)

    async def _encode(self, image: Image.Image | Buffer | AnyTensor, options: EncodeArguments) -> Answer:
        request = encode_request(image, options)
        reply = await send(self._network, post(self._endpoint, request), self._bounds)
        return read_encoded(request, reply, like=image)

    async def model_list(self) -> dict[str, Any]:
        """What GET /models says, as a coroutine of both clients: the cards, and the names of models without a card."""
        return read_models(await send(self._network, self._endpoint.request("GET", "/models"), self._bounds))

    async def _ready(self) -> bool:
        request = self._endpoint.request("GET", "/ready")
        try:
            return read_ready(await send(self._network, request, self._bounds.of_probe()))
        except (ConnectionFailed, ClientTimeout):
            return False


class Client(Calls[httpx2.Client]):
    """Decodes latents and encodes images on a server; threads may share one, and so may forked processes.

    `timeout` limits a whole call with all its tries, in seconds; `retries` is the greatest number of tries, the first
    included. A lost connection, 429 and 503 are tried again, and so is the 502 or 504 of a proxy. The credential is
    `token`, otherwise the one in the URL, otherwise the variable REMOTE_VAE_API_KEY. An injected `http` keeps its own
    proxies and certificates, is not closed by this client, and may exceed `timeout` by one wait for the network.

    Every call *raises* RequestError or ServerError as the server did; ConnectionFailed, ClientTimeout, InvalidReply.
    The constructor *raises* InvalidValue, ConfigurationError.
    """

    _network_type = BlockingNetwork

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        run(self._network.close())

    def decode(self, latent: AnyTensor, **options: Unpack[DecodeArguments]) -> Any:
        """A PIL image; with output_type="pt" a tensor of the latent's kind, torch or numpy; with "mp4" bytes.

        `options`: model, scaling_factor, shift_factor, do_scaling=False, output_type="pil", image_format="png",
        partial_postprocess=False, quality, height, width, plan.
        """
        return run(self._decode(latent, options)).value

    def decode_reply(self, latent: AnyTensor, **options: Unpack[DecodeArguments]) -> Reply:
        """`decode`, but as the server sent it: a written image, an MP4 or a `values.Tensor`, with its provenance."""
        return run(self._decode(latent, options)).reply

    def encode(self, image: Image.Image | Buffer | AnyTensor, **options: Unpack[EncodeArguments]) -> AnyTensor:
        """The latent of a PIL image, of a written PNG, JPEG or WebP, or of a tensor; torch for torch, otherwise numpy.

        `options`: model, scaling_factor, shift_factor, do_scaling=False, posterior, seed, plan.
        """
        return run(self._encode(image, options)).value

    def encode_reply(self, image: Image.Image | Buffer | AnyTensor, **options: Unpack[EncodeArguments]) -> Reply:
        """`encode`, but as the server sent it: a `values.Tensor` with its provenance."""
        return run(self._encode(image, options)).reply

    def models(self) -> list[dict[str, Any]]:
        """The cards of the server's models, with the names of `ModelInfo`."""
        cards: list[dict[str, Any]] = run(self.model_list())["models"]
        return cards

    def ready(self) -> bool:
        """Whether the server answers and has loaded its models; it is asked once, for 10 seconds at most."""
        return run(self._ready())


class AsyncClient(Calls[httpx2.AsyncClient]):
    """`Client` for code that awaits: the same arguments, methods, results and errors.

    Tasks may share one. In another event loop it opens other connections; those of a loop are closed with that loop,
    or by `close` within it.
    """

    _network_type = AsyncNetwork

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """`Client.close`, for the connections of the running event loop."""
        await self._network.close()

    async def decode(self, latent: AnyTensor, **options: Unpack[DecodeArguments]) -> Any:
        """`Client.decode`, awaited."""
        return (await self._decode(latent, options)).value

    async def decode_reply(self, latent: AnyTensor, **options: Unpack[DecodeArguments]) -> Reply:
        """`Client.decode_reply`, awaited."""
        return (await self._decode(latent, options)).reply

    async def encode(self, image: Image.Image | Buffer | AnyTensor, **options: Unpack[EncodeArguments]) -> AnyTensor:
        """`Client.encode`, awaited."""
        return (await self._encode(image, options)).value

    async def encode_reply(self, image: Image.Image | Buffer | AnyTensor, **options: Unpack[EncodeArguments]) -> Reply:
        """`Client.encode_reply`, awaited."""
        return (await self._encode(image, options)).reply

    async def models(self) -> list[dict[str, Any]]:
        """`Client.models`, awaited."""
        cards: list[dict[str, Any]] = (await self.model_list())["models"]
        return cards

    async def ready(self) -> bool:
        """`Client.ready`, awaited."""
        return await self._ready()
