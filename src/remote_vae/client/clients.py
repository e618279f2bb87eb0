"""Client and AsyncClient: a Remote VAE server, for code that blocks and for code that awaits."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any, Final

import httpx2
from PIL import Image

from remote_vae.client.aio_queue import AsyncQueue, Item
from remote_vae.client.calls import answer, made_ready
from remote_vae.client.coroutines import Calls
from remote_vae.client.latents import AnyTensor, copy_of
from remote_vae.client.network import AsyncNetwork, BlockingNetwork, run
from remote_vae.client.pictures import AnyPicture, held
from remote_vae.client.queue import Queue
from remote_vae.client.watching import Tell
from remote_vae.protocol.messages import Reply
from remote_vae.protocol.options import DecodeArguments, EncodeArguments
from remote_vae.python310 import Self, Unpack
from remote_vae.values import Buffer

TRIES: Final = 10_000  # in effect without limit: an item's tries end with its time-out
WINDOW: Final = 4  # items of a call for many that are under way, for each one at the server


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

    def decode(self, latent: AnyTensor, *, progress: bool | Tell = False, **options: Unpack[DecodeArguments]) -> Any:
        """A PIL image; with output_type="pt" a tensor of the latent's kind, torch or numpy; of a video bytes.

        `options`: model, scaling_factor, shift_factor, do_scaling=False, output_type="pil", image_format="png",
        partial_postprocess=False, quality, fps, codec, chroma, height, width, plan.

        `progress` is True for a bar on a terminal, or a function that takes a `CallProgress` and is called in this
        thread, five times a second while the call waits and once when it is finished. What it raises ends the call,
        and the server drops the job. A server or proxy that tells nothing does no harm.
        """
        return run(self._decode(latent, options, progress)).value

    def decode_reply(
        self, latent: AnyTensor, *, progress: bool | Tell = False, **options: Unpack[DecodeArguments]
    ) -> Reply:
        """`decode`, but as the server sent it: a written image, an MP4 or a `values.Tensor`, with its provenance."""
        return run(self._decode(latent, options, progress)).reply

    def decode_stream(self, latent: AnyTensor, **options: Unpack[DecodeArguments]) -> Iterator[Any]:
        """The frames of one video while the rest of it is decoded: blocks of them, in order, as they are finished.

        A block is a tensor of the latent's kind: uint8 [F,H,W,P]; with output_type="pil" floats in [0, 1] and with
        output_type="pt" raw ones, [F,P,H,W]. Models that finish all frames together give them at the end. The stream
        *raises* if it ends before the last frame, so what was iterated without an error is the whole video. An
        iteration that is abandoned cancels the decode, and one that pauses holds it up; `timeout` is for all of it, and
        `max_reply_bytes` for each block. Only a stream that has not begun is tried again.
        """
        blocks = self._stream(latent, options)
        try:
            while (block := run(_next(blocks))) is not None:
                yield block
        finally:
            run(blocks.aclose())

    def encode(
        self,
        image: Image.Image | Buffer | AnyTensor,
        *,
        progress: bool | Tell = False,
        **options: Unpack[EncodeArguments],
    ) -> AnyTensor:
        """The latent of a PIL image, of a written picture or video or its path, or of a tensor; torch for torch.

        For all but torch tensors the latent is a numpy array. A model of videos takes files as docs/wire.md lists them.
        `options`: model, scaling_factor, shift_factor, do_scaling=False, posterior, seed, frames, start, fps, plan.
        """
        return run(self._encode(image, options, progress)).value

    def encode_reply(
        self,
        image: Image.Image | Buffer | AnyTensor,
        *,
        progress: bool | Tell = False,
        **options: Unpack[EncodeArguments],
    ) -> Reply:
        """`encode`, but as the server sent it: a `values.Tensor` with its provenance."""
        return run(self._encode(image, options, progress)).reply

    def decode_many(
        self,
        latents: Iterable[AnyTensor],
        *,
        in_flight: int = 4,
        ordered: bool = True,
        **options: Unpack[DecodeArguments],
    ) -> Iterator[Item]:
        """An `Item` with what `decode` returns, or with the error in its place, for each latent.

        At most `in_flight` latents are at the server, and four times that number are under way; the iterable is asked
        for no more. The items come in order, or with `ordered=False` as each is done. An item is sent again until its
        time-out is over, unless the client has `retries`, so the server may be restarted.
        """
        return _all(_queue(self, AsyncClient.decode_one, copy_of, in_flight, options), latents, ordered)

    def encode_many(
        self,
        images: Iterable[AnyPicture],
        *,
        in_flight: int = 4,
        ordered: bool = True,
        **options: Unpack[EncodeArguments],
    ) -> Iterator[Item]:
        """`decode_many` for pictures: an `Item` with the latent of each.

        A picture is what `encode` takes, or a function without arguments that returns it. Such a function is called in
        a thread, so that files are read while others are at the server: `encode_many(p.read_bytes for p in paths)`.
        """
        return _all(_queue(self, AsyncClient.encode_one, held, in_flight, options), images, ordered)

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

    async def decode(
        self, latent: AnyTensor, *, progress: bool | Tell = False, **options: Unpack[DecodeArguments]
    ) -> Any:
        """`Client.decode`, awaited; a `progress` function is called in the event loop."""
        return (await self._decode(latent, options, progress)).value

    async def decode_reply(
        self, latent: AnyTensor, *, progress: bool | Tell = False, **options: Unpack[DecodeArguments]
    ) -> Reply:
        """`Client.decode_reply`, awaited."""
        return (await self._decode(latent, options, progress)).reply

    def decode_stream(self, latent: AnyTensor, **options: Unpack[DecodeArguments]) -> AsyncIterator[Any]:
        """`Client.decode_stream`, for `async for`. `contextlib.aclosing` cancels the decode at once if it is left."""
        return self._stream(latent, options)

    async def encode(
        self,
        image: Image.Image | Buffer | AnyTensor,
        *,
        progress: bool | Tell = False,
        **options: Unpack[EncodeArguments],
    ) -> AnyTensor:
        """`Client.encode`, awaited."""
        return (await self._encode(image, options, progress)).value

    async def encode_reply(
        self,
        image: Image.Image | Buffer | AnyTensor,
        *,
        progress: bool | Tell = False,
        **options: Unpack[EncodeArguments],
    ) -> Reply:
        """`Client.encode_reply`, awaited."""
        return (await self._encode(image, options, progress)).reply

    def decode_many(
        self,
        latents: Iterable[AnyTensor] | AsyncIterable[AnyTensor],
        *,
        in_flight: int = 4,
        ordered: bool = True,
        **options: Unpack[DecodeArguments],
    ) -> AsyncIterator[Item]:
        """`Client.decode_many`, for `async for`; an ordinary iterable runs in a thread."""
        return _each(_queue(self, AsyncClient.decode_one, copy_of, in_flight, options), latents, ordered)

    def encode_many(
        self,
        images: Iterable[AnyPicture] | AsyncIterable[AnyPicture],
        *,
        in_flight: int = 4,
        ordered: bool = True,
        **options: Unpack[EncodeArguments],
    ) -> AsyncIterator[Item]:
        """`Client.encode_many`, for `async for`; an ordinary iterable runs in a thread."""
        return _each(_queue(self, AsyncClient.encode_one, held, in_flight, options), images, ordered)

    async def decode_one(self, lane: AbstractAsyncContextManager[Any], latent: AnyTensor, options: Any) -> Any:
        """A decode as a queue does it, within its lane."""
        async with lane:
            return await self.decode(latent, **options)

    async def encode_one(self, lane: AbstractAsyncContextManager[Any], image: AnyPicture, options: Any) -> Any:
        """An encode as a queue does it: made ready in a thread, and sent within its lane."""
        request, like = await asyncio.to_thread(made_ready, image, options)
        async with lane:
            return answer(request, await self._ask(request), like=like).value

    async def models(self) -> list[dict[str, Any]]:
        """`Client.models`, awaited."""
        cards: list[dict[str, Any]] = (await self.model_list())["models"]
        return cards

    async def ready(self) -> bool:
        """`Client.ready`, awaited."""
        return await self._ready()


async def _next(blocks: AsyncGenerator[Any, None]) -> Any:
    return await anext(blocks, None)


def _queue(calls: Calls[Any], work: Any, hold: Callable[[Any], Any], in_flight: int, options: Any) -> AsyncQueue[Any]:
    """A queue with connections of its own; without `retries` an item is tried for as long as it has time."""
    client = AsyncClient.__new__(AsyncClient)
    client.take_after(calls, tries=TRIES)
    return AsyncQueue(
        partial(work, client),
        hold=hold,
        close=client.close,
        options=options,
        in_flight=in_flight,
        size=WINDOW * in_flight,
    )


def _all(queue: AsyncQueue[Any], items: Iterable[Any], ordered: bool) -> Iterator[Item]:
    with Queue(queue) as blocking:
        yield from blocking.items(items, {}, ordered=ordered)


async def _each(queue: AsyncQueue[Any], items: Any, ordered: bool) -> AsyncGenerator[Item]:
    async with queue, aclosing(queue.items(items, {}, ordered=ordered)) as found:
        async for item in found:
            yield item
