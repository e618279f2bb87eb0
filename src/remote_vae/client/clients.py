"""Client and AsyncClient: a Remote VAE server, for code that blocks and for code that awaits."""

import pickle
from collections.abc import Callable
from typing import Any, Generic, Self, Unpack

import httpx2
from PIL import Image

from remote_vae.client.calls import (
    Answer,
    answer,
    decode_request,
    encode_request,
    find_card,
    post,
    read_models,
    read_ready,
    read_reply,
)
from remote_vae.client.endpoint import Endpoint, read_endpoint
from remote_vae.client.exchange import HttpReply, HttpRequest
from remote_vae.client.latents import AnyTensor
from remote_vae.client.network import AsyncNetwork, BlockingNetwork, H, Network, PathText, run
from remote_vae.client.parts import NEEDED, Card, joined, parts_of
from remote_vae.client.retry import GIB, Bounds, send
from remote_vae.errors import ClientTimeout, ConnectionFailed, RemoteVAEError, TooLarge
from remote_vae.protocol.messages import DecodeRequest, EncodeRequest, Reply
from remote_vae.protocol.options import DecodeArguments, EncodeArguments
from remote_vae.values import Buffer


class Calls(Generic[H]):
    """What both clients share: the constructor, and the calls to a server as coroutines over a network.

    A pickle or copy has the address and the credential, and opens connections of its own.
    """

    _network_type: Callable[..., Network]

    def __init__(
        self,
        endpoint: str,
        *,
        token: str | None = None,
        timeout: float = 300.0,
        retries: int | None = None,
        http: H | None = None,
        proxy: str | None = None,
        ca_file: PathText | None = None,
        max_reply_bytes: int = GIB,
    ) -> None:
        bounds = Bounds(timeout=timeout, tries=retries, max_reply_bytes=max_reply_bytes)
        self._set_up(read_endpoint(endpoint, token=token), bounds, proxy, ca_file, http)

    def _set_up(
        self, endpoint: Endpoint, bounds: Bounds, proxy: str | None, ca_file: PathText | None, http: H | None = None
    ) -> None:
        self._endpoint, self._bounds, self._route = endpoint, bounds, (proxy, ca_file)
        self._network = self._network_type(endpoint.url, http=http, proxy=proxy, ca_file=ca_file)
        self._cards: dict[str | None, Card] = {}

    def __getstate__(self) -> tuple[Any, ...]:
        if self._network.injected is not None:
            raise pickle.PicklingError(
                "a client with an injected http client cannot be pickled or copied; make another one where it is needed"
            )
        return self._endpoint, self._bounds, *self._route

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._set_up(*state)

    def know(self, card: Card) -> None:
        """Takes the limits of a model from its card, so that they need not be met first."""
        self._cards[card["name"]] = card

    async def _send(self, request: HttpRequest, bounds: Bounds | None = None) -> HttpReply:
        return await send(self._network, request.numbered(), bounds or self._bounds)

    async def _decode(self, latent: AnyTensor, options: DecodeArguments) -> Answer:
        request = decode_request(latent, options)
        return answer(request, await self._ask(request), like=latent)

    async def _encode(self, image: Image.Image | Buffer | AnyTensor, options: EncodeArguments) -> Answer:
        request = encode_request(image, options)
        return answer(request, await self._ask(request), like=image)

    async def _ask(self, request: DecodeRequest | EncodeRequest) -> Reply:
        """The reply to a request; if its batch is too large for the server, the replies to its parts as one."""
        card = self._cards.get(request.model)
        parts = [request] if card is None else parts_of(request, card)
        try:
            return joined([read_reply(part, await self._send(post(self._endpoint, part))) for part in parts])
        except TooLarge:
            found = await self.card(request.model) if card is None else None
            if found is None or parts_of(request, found)[0] is request:
                raise
        return await self._ask(request)

    async def card(self, model: str | None) -> Card | None:
        """The card of a model, as a coroutine of both clients. It is kept; None if the server does not tell it."""
        try:
            listed = await self.model_list()
        except RemoteVAEError:
            return None
        card = find_card(listed, model)
        if card is None or NEEDED - card.keys():
            return None
        self._cards[model] = card
        return card

    async def model_list(self) -> dict[str, Any]:
        """What GET /models says, as a coroutine of both clients: the cards, and the names of models without a card."""
        return read_models(await self._send(self._endpoint.request("GET", "/models")))

    async def _ready(self) -> bool:
        request = self._endpoint.request("GET", "/ready")
        try:
            return read_ready(await self._send(request, self._bounds.of_probe()))
        except (ConnectionFailed, ClientTimeout):
            return False


class Client(Calls[httpx2.Client]):
    """Decodes latents and encodes images on a server; threads may share one, and so may forked processes.

    `timeout` limits a whole call with all its tries, in seconds; `retries` is the greatest number of tries, the first
    included. A lost connection, 429 and 503 are tried again, and so is the 502 or 504 of a proxy. Without `retries`
    that is three tries, but as many as the time allows if the server hung up or a proxy does not reach it: it may
    only restart. The credential is `token`, otherwise the one in the URL, otherwise the variable REMOTE_VAE_API_KEY.
    `proxy` is one for all requests, in the place of the environment's; `ca_file` adds a private authority's
    certificates in PEM to those that are trusted. An injected `http` keeps its own proxies and certificates, is not
    closed by this client, and may exceed `timeout` by one wait for the network.

    A batch that is larger than the server takes at once goes in parts, each within `timeout`, and comes back as one. A
    seed goes up by the items before a part. A pickle or copy has the address and the credential.

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
