"""DecodeQueue and EncodeQueue, blocking and asynchronous: queues of latents and of pictures for a server."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from remote_vae.client.aio_queue import AsyncQueue, Item, QueueArguments
from remote_vae.client.clients import TRIES, AsyncClient
from remote_vae.client.latents import AnyTensor, copy_of
from remote_vae.client.network import PathText
from remote_vae.client.pictures import AnyPicture, held
from remote_vae.client.queue import Queue
from remote_vae.protocol.options import DecodeArguments, EncodeArguments
from remote_vae.python310 import Unpack


class WayArguments(QueueArguments, total=False):
    """What a queue may be told about itself and about the way to its server."""

    token: str | None
    timeout: float
    ca_file: PathText | None


class DecodeQueueArguments(WayArguments, DecodeArguments, total=False):
    """The keywords of DecodeQueue and AsyncDecodeQueue."""


class EncodeQueueArguments(WayArguments, EncodeArguments, total=False):
    """The keywords of EncodeQueue and AsyncEncodeQueue."""


class AsyncDecodeQueue(AsyncQueue[AnyTensor]):
    """Decodes latents in the background, several at a time, and returns the results in the order of the puts.

    At most `size` (8) items are in the queue: they wait, are decoded, or are held back by an earlier item. `put` waits
    for room. At most `in_flight` (2) items are at the server. If the connection is lost or the server refuses an item
    for now, the item is sent again until its `timeout` (300) is over, so the server may be restarted; any other error
    stays with its item. `on_done` is called with every `Item`, in order: awaited if it is a coroutine function,
    otherwise in a thread; `close` raises its first exception. `progress` is True for a bar, or an object with
    `update(n)`. `token` and `ca_file` are those of `Client`, and the remaining arguments are those of `Client.decode`,
    for every latent. *Units*: timeout in seconds, for each item. *Raises* InvalidValue, ConfigurationError.
    """

    def __init__(self, endpoint: str, **arguments: Unpack[DecodeQueueArguments]) -> None:
        client, own, options = _client_of(endpoint, arguments)
        super().__init__(client.decode_one, hold=copy_of, close=client.close, options=options, **own)

    async def put(self, latent: AnyTensor, **options: Unpack[DecodeArguments]) -> asyncio.Task[Any]:
        """The decode as a task, which may be awaited, cancelled, or left to `on_done`; waits while there is no room.

        The latent is copied, so the caller may change it at once. *Raises* RuntimeError after `close`.
        """
        return (await self.enqueue(self.hold(latent), options))[1]

    def map(
        self, latents: Iterable[AnyTensor] | AsyncIterable[AnyTensor], **options: Unpack[DecodeArguments]
    ) -> AsyncIterator[Item]:
        """An item for each latent, in order, while the next latents are made; an ordinary iterable runs in a thread.

        If the iteration is abandoned, the remaining items are cancelled.
        """
        return self.items(latents, options)


class DecodeQueue(Queue[AsyncDecodeQueue]):
    """Decodes latents in the background, several at a time, and returns the results in the order of the puts.

    `AsyncDecodeQueue` for code that blocks, with the same arguments; `on_done` is called in a thread. A forked process
    must create another queue.
    """

    def __init__(self, endpoint: str, **arguments: Unpack[DecodeQueueArguments]) -> None:
        super().__init__(AsyncDecodeQueue(endpoint, **arguments))

    def put(self, latent: AnyTensor, **options: Unpack[DecodeArguments]) -> Future[Any]:
        """The decode as a future: wait for it, cancel it, or leave it to `on_done`; waits while there is no room.

        The latent is copied, so the caller may change it at once. *Raises* RuntimeError after `close`.
        """
        return self.enqueue(latent, options)[1]

    def map(self, latents: Iterable[AnyTensor], **options: Unpack[DecodeArguments]) -> Iterator[Item]:
        """An item for each latent, in order; the next latents are made while the last ones are decoded.

        If the iteration is abandoned, the remaining items are cancelled.
        """
        return self.items(latents, options)


class AsyncEncodeQueue(AsyncQueue[AnyPicture]):
    """`AsyncDecodeQueue` for pictures: each becomes a latent. The options are those of `Client.encode`.

    A picture is what `Client.encode` takes, or a function without arguments that returns it. Such a function is called
    in a thread, so that files are read and pictures are written for the wire while others are at the server.
    """

    def __init__(self, endpoint: str, **arguments: Unpack[EncodeQueueArguments]) -> None:
        client, own, options = _client_of(endpoint, arguments)
        super().__init__(client.encode_one, hold=held, close=client.close, options=options, **own)

    async def put(self, image: AnyPicture, **options: Unpack[EncodeArguments]) -> asyncio.Task[Any]:
        """The encode as a task; see `AsyncDecodeQueue.put`."""
        return (await self.enqueue(self.hold(image), options))[1]

    def map(
        self, images: Iterable[AnyPicture] | AsyncIterable[AnyPicture], **options: Unpack[EncodeArguments]
    ) -> AsyncIterator[Item]:
        """An item for each picture, in order; see `AsyncDecodeQueue.map`."""
        return self.items(images, options)


class EncodeQueue(Queue[AsyncEncodeQueue]):
    """`AsyncEncodeQueue` for code that blocks, with the same arguments; `on_done` is called in a thread."""

    def __init__(self, endpoint: str, **arguments: Unpack[EncodeQueueArguments]) -> None:
        super().__init__(AsyncEncodeQueue(endpoint, **arguments))

    def put(self, image: AnyPicture, **options: Unpack[EncodeArguments]) -> Future[Any]:
        """The encode as a future; see `DecodeQueue.put`."""
        return self.enqueue(image, options)[1]

    def map(self, images: Iterable[AnyPicture], **options: Unpack[EncodeArguments]) -> Iterator[Item]:
        """An item for each picture, in order; see `DecodeQueue.map`."""
        return self.items(images, options)


def _client_of(endpoint: str, arguments: Any) -> tuple[AsyncClient, QueueArguments, dict[str, Any]]:
    """The client of a queue, the arguments of the queue itself, and the options of its requests."""
    options = dict(arguments)
    own: Any = {name: options.pop(name) for name in QueueArguments.__annotations__ if name in options}
    way = {name: options.pop(name) for name in ("token", "timeout", "ca_file") if name in options}
    return AsyncClient(endpoint, retries=TRIES, **way), own, options
