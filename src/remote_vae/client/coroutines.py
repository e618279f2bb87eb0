"""What Client and AsyncClient share: the calls to a server, as coroutines over a network."""

import pickle
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Generic

from PIL import Image

from remote_vae.client.call_bar import telling
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
    stream_request,
)
from remote_vae.client.endpoint import Endpoint, read_endpoint
from remote_vae.client.exchange import Deadline, HttpReply, HttpRequest
from remote_vae.client.latents import AnyTensor, tensor_like
from remote_vae.client.network import H, Network, PathText
from remote_vae.client.parts import NEEDED, Card, joined, parts_of
from remote_vae.client.retry import LARGEST_REPLY, Bounds, send
from remote_vae.client.streams import blocks_of
from remote_vae.client.watching import CallProgress, Tell, Watch, attended
from remote_vae.errors import ClientTimeout, ConfigurationError, ConnectionFailed, RemoteVAEError, TooLarge
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
        max_reply_bytes: int = LARGEST_REPLY,
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

    def take_after(self, other: "Calls[Any]", *, tries: int) -> None:
        """Sets this client up like another one; its calls have so many tries, unless the other says how many.

        *Raises* ConfigurationError if the connections of the other client are injected.
        """
        if other._network.injected is not None:
            raise ConfigurationError("many items need connections of their own; make a client without an injected http")
        bounds = replace(other._bounds, tries=other._bounds.tries or tries)
        self._set_up(other._endpoint, bounds, *other._route)

    def know(self, card: Card) -> None:
        """Takes the limits of a model from its card, so that they need not be met first."""
        self._cards[card["name"]] = card

    async def _send(self, request: HttpRequest, bounds: Bounds | None = None) -> HttpReply:
        return await send(self._network, request.numbered(), bounds or self._bounds)

    async def _watched(self, request: HttpRequest, tell: Tell | None, part: int, parts: int) -> HttpReply:
        """The reply to a request; its job is watched if there is a function to tell."""
        if tell is None:
            return await self._send(request)
        sent = request.numbered()
        events = self._endpoint.request("GET", f"/jobs/{sent.request_id}/events")
        watch = Watch(tell, events, deadline=Deadline.after(self._bounds.timeout), part=part, parts=parts)
        return await attended(self._network, partial(send, self._network, sent, self._bounds), watch)

    async def _decode(self, latent: AnyTensor, options: DecodeArguments, progress: bool | Tell) -> Answer:
        request = decode_request(latent, options)
        with telling(progress, "decoding") as tell:
            return answer(request, await self._ask(request, tell), like=latent)

    async def _stream(self, latent: AnyTensor, options: DecodeArguments) -> AsyncGenerator[AnyTensor, None]:
        request = stream_request(latent, options)
        sent = post(self._endpoint, request).numbered()
        async with aclosing(blocks_of(self._network, sent, request, self._bounds)) as blocks:
            async for block in blocks:
                yield tensor_like(block, latent)

    async def _encode(
        self, image: Image.Image | Buffer | AnyTensor, options: EncodeArguments, progress: bool | Tell
    ) -> Answer:
        request = encode_request(image, options)
        with telling(progress, "encoding") as tell:
            return answer(request, await self._ask(request, tell), like=image)

    async def _ask(self, request: DecodeRequest | EncodeRequest, tell: Tell | None = None) -> Reply:
        """The reply to a request; if its batch is too large for the server, the replies to its parts as one."""
        card = self._cards.get(request.model)
        parts = [request] if card is None else parts_of(request, card)
        try:
            replies = [
                read_reply(part, await self._watched(post(self._endpoint, part), tell, at, len(parts)))
                for at, part in enumerate(parts)
            ]
            if tell is not None:
                tell(CallProgress("finished", part=len(parts) - 1, parts=len(parts)))
            return joined(replies)
        except TooLarge:
            found = await self.card(request.model) if card is None else None
            if found is None or parts_of(request, found)[0] is request:
                raise
        return await self._ask(request, tell)

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
