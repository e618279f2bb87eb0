"""Frames of a video while it is decoded: a reply that is opened like any other, and read part by part."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import httpx2

from remote_vae.client.checks import check_decoded
from remote_vae.client.exchange import (
    Deadline,
    Failure,
    HttpReply,
    HttpRequest,
    Outcome,
    ReplyReader,
    failure_of,
    settle,
)
from remote_vae.client.network import Network
from remote_vae.client.retry import Bounds, Tries
from remote_vae.errors import ClientError, InvalidReply
from remote_vae.protocol.messages import DecodeRequest
from remote_vae.protocol.multipart import FRAMES_HEADER, PartsReader
from remote_vae.protocol.replies import parse_reply
from remote_vae.values import Tensor


@dataclass(frozen=True, slots=True)
class Opened:
    """A reply that has begun: its head, what has come of its body, and the chunks that follow."""

    head: HttpReply
    first: bytes
    chunks: AsyncGenerator[bytes, None]
    deadline: Deadline


async def blocks_of(
    network: Network, request: HttpRequest, asked: DecodeRequest, bounds: Bounds
) -> AsyncGenerator[Tensor, None]:
    """The blocks of frames as they come. `bounds.max_reply_bytes` is for each of them.

    *Raises* what the server raised, ConnectionFailed, ClientTimeout, InvalidReply if the reply broke off.
    """
    opened = await _open(network, request, bounds)
    async with aclosing(opened.chunks):
        parts = PartsReader(opened.head.headers.get("content-type", ""), most_bytes=bounds.max_reply_bytes)
        came, chunk = 0, opened.first
        while chunk:
            for tensor in parts.take(chunk):
                check_decoded(asked, tensor)
                came += tensor.shape[0]
                yield tensor
            chunk = await _next(network, opened, request.url)
        parts.end()
    expected = opened.head.headers.get(FRAMES_HEADER, str(came))
    if expected != str(came):
        raise InvalidReply(f"the stream has {came} frames and not {expected}, as its head says")


async def _next(network: Network, opened: Opened, url: str) -> bytes:
    """The next chunk; empty at the end."""
    try:
        return await network.pull(opened.chunks, opened.deadline)
    except (httpx2.HTTPError, TimeoutError) as exc:
        raise failure_of(exc, url=url, in_body=True).error from exc


async def _open(network: Network, request: HttpRequest, bounds: Bounds) -> Opened:
    """As `retry.send` does it. Once a reply of 200 has begun the request is not sent again."""
    tries = Tries(most=bounds.tries, budget=bounds.timeout, known=network.answered)
    while True:
        reader = ReplyReader(limit=bounds.max_reply_bytes, deadline=tries.deadline, request_id=request.request_id)
        chunks = network.chunks(request, reader)
        outcome, first = await _attempt(network, request, reader, chunks)
        network.answered |= not isinstance(outcome, Failure)
        pause = tries.pause_after(outcome)
        if pause is None:
            reply = settle(outcome)
            if reply.status != 200:
                parse_reply(reply.status, reply.headers, reply.body)
            return Opened(reply, first, chunks, tries.deadline)
        await network.sleep(pause)


async def _attempt(
    network: Network, request: HttpRequest, reader: ReplyReader, chunks: AsyncGenerator[bytes, None]
) -> tuple[Outcome, bytes]:
    """The reply with the first chunk of its body; or an error's reply, which is read to its end."""
    try:
        chunk = await network.pull(chunks, reader.deadline)
        assert reader.reply is not None, "an exchange without an error has a reply"
        if reader.reply.status == 200:
            return reader.reply, chunk
        while chunk:
            reader.take(chunk)
            chunk = await network.pull(chunks, reader.deadline)
    except ClientError as exc:
        return Failure(exc, passing=reader.foreign), b""
    except (httpx2.HTTPError, TimeoutError) as exc:
        return failure_of(exc, url=request.url, in_body=reader.reply is not None), b""
    return reader.reply, b""
