"""Frames while they are decoded: both clients, at a real server and at servers that break off, lie or stall."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing
from typing import Any

import numpy as np
import pytest
import requests
import torch

from remote_vae.client import AsyncClient, Client
from remote_vae.errors import (
    ClientTimeout,
    InvalidReply,
    InvalidValue,
    NotReady,
    RemoteVAEError,
    ReplicaFailed,
    TooLarge,
    UnsupportedOutput,
)
from remote_vae.protocol.multipart import PartsWriter
from remote_vae.values import Tensor

RAISE, SLEEP = 9.0, 8.0  # of misbehaving.py
Read = Callable[..., list[Any]]


@pytest.fixture(params=["sync", "async"])
def read(request: pytest.FixtureRequest) -> Read:
    """`read(url, latent, blocks, most=..., client={...}, **options)` puts up to `most` blocks into the list."""

    def blocking(url: str, latent: Any, blocks: list[Any], most: int = 100, client: Any = None, **options: Any) -> None:
        with Client(url, **(client or {})) as found, closing(found.decode_stream(latent, **options)) as stream:
            for block in stream:
                blocks.append(block)
                if len(blocks) == most:
                    return

    async def awaiting(
        url: str, latent: Any, blocks: list[Any], most: int = 100, client: Any = None, **options: Any
    ) -> None:
        async with (
            AsyncClient(url, **(client or {})) as found,
            aclosing(found.decode_stream(latent, **options)) as stream,
        ):
            async for block in stream:
                blocks.append(block)
                if len(blocks) == most:
                    return

    if request.param == "sync":
        return blocking
    return lambda *arguments, **options: asyncio.run(awaiting(*arguments, **options))


@pytest.fixture(scope="module")
def films(start: Any) -> Iterator[Any]:
    with start("films", "copy") as server:
        yield server


def video(frames: int, *, side: int = 16, first: dict[int, float] | None = None) -> np.ndarray:
    values = np.random.default_rng(5).uniform(-1, 1, (1, 3, frames, side, side)).astype(np.float32)
    for frame, value in (first or {}).items():
        values[0, 0, frame, 0, 0] = value
    return values


@pytest.mark.parametrize(
    "options", [{}, {"output_type": "pil"}, {"output_type": "pt"}, {"output_type": "pt", "partial_postprocess": True}]
)
def test_the_blocks_are_the_whole_video(films: Any, read: Read, options: dict[str, Any]) -> None:
    """Joined, the blocks are what decode gives: levels unless other numbers are asked for."""
    sent, blocks = video(7), list[np.ndarray]()
    read(films.url, sent, blocks, **options)
    plain = {"output_type": "pt", "partial_postprocess": True} if options in ({}, {"output_type": "pil"}) else options
    with Client(films.url) as client:
        whole = client.decode(sent, **plain)
    found = np.concatenate(blocks)
    if options == {"output_type": "pt"}:
        whole = whole[0].transpose(1, 0, 2, 3)
    elif options == {"output_type": "pil"}:
        found = (found.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8)
    assert len(blocks) == 7
    assert (found.dtype, np.array_equal(found, whole)) == (whole.dtype, True)


def test_torch_for_torch(films: Any, read: Read) -> None:
    """Blocks are torch tensors for a torch latent, and may be written to."""
    blocks: list[torch.Tensor] = []
    read(films.url, torch.from_numpy(video(2)), blocks)
    assert torch.cat(blocks).shape == (2, 16, 16, 3)
    blocks[0] += 1


def test_a_fault_in_the_middle_is_raised(films: Any, read: Read) -> None:
    """The blocks before it are handed out, then the server's own error is raised."""
    blocks: list[np.ndarray] = []
    with pytest.raises(RemoteVAEError, match="the VAE failed on this request"):
        read(films.url, video(9, first={6: RAISE}), blocks)
    assert sum(map(len, blocks)) == 6


def test_an_iteration_that_is_left(films: Any, read: Read) -> None:
    """A decode whose frames nobody wants any more is cancelled."""
    blocks: list[np.ndarray] = []
    read(films.url, video(60, first={frame: SLEEP for frame in range(4, 60)}), blocks, most=2)

    def idle() -> bool:
        return 'accepted_jobs{model="films"} 0.0' in requests.get(f"{films.url}/metrics", timeout=10).text

    films.wait_until(idle, seconds=30)
    assert len(blocks) == 2


def test_what_the_server_refuses(films: Any, read: Read) -> None:
    """A refusal is raised as by decode, before any block."""
    blocks: list[np.ndarray] = []
    with pytest.raises(UnsupportedOutput, match="stream is for models of videos"):
        read(films.url, video(1)[:, :, 0], blocks, model="copy")
    assert blocks == []


def test_what_is_no_stream() -> None:
    """A file is not made of blocks, and a call for a whole reply does not ask for parts."""
    with Client("http://127.0.0.1:1") as client:
        with pytest.raises(InvalidValue, match="is a file"):
            next(iter(client.decode_stream(video(1), output_type="mp4")))
        with pytest.raises(InvalidValue, match="which decode_stream reads"):
            client.decode(video(1), output_type="pt", stream=True)
        with pytest.raises(InvalidValue, match="which decode_stream reads"):
            client.decode(video(1), output_type="mp4", stream=True)


def parts(count: int = 3, *, end: bool = True, error: RemoteVAEError | None = None) -> tuple[str, bytes]:
    """The content type and the body of a stream of frames, 2 in each part."""
    writer, body = PartsWriter(), b""
    for number in range(count):
        body += b"".join(writer.tensor(Tensor("uint8", (2, 4, 4, 3), bytes([number]) * 96), []))
    if error is not None:
        body += b"".join(writer.error(error))
    return writer.content_type, body + (writer.end() if end else b"")


def streamed(found: tuple[str, bytes], *, whole: bool = True, frames: str = "6") -> bytes:
    """A reply in one chunk, with its last chunk if it is `whole`."""
    media, body = found
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {media}\r\ntransfer-encoding: chunked\r\nx-frames: {frames}\r\n\r\n"
    return head.encode() + b"%x\r\n" % len(body) + body + b"\r\n" + (b"0\r\n\r\n" if whole else b"")


def test_a_whole_stream(read: Read, serve: Any, latent: np.ndarray) -> None:
    """The request asks for parts, and their blocks come in order."""
    server, blocks = serve(streamed(parts())), list[np.ndarray]()
    read(server.url, latent, blocks)
    assert [int(block[0, 0, 0, 0]) for block in blocks] == [0, 1, 2]
    assert "stream=True" in server.seen[0].target
    assert server.seen[0].headers["accept"] == "multipart/mixed"


@pytest.mark.parametrize(
    ("reply", "error", "count"),
    [
        (streamed(parts(end=False), whole=False), InvalidReply, 3),
        (streamed(parts(end=False)), InvalidReply, 3),  # as if a proxy had mended the chunks
        (streamed(parts(2), frames="6"), InvalidReply, 2),
        (streamed(parts(2, end=False, error=ReplicaFailed("gone")), whole=False), ReplicaFailed, 2),
        (streamed((parts()[0], parts()[1])), InvalidReply, 0),  # of another boundary
        (streamed(("tensor/binary", parts()[1])), InvalidReply, 0),
    ],
)
def test_a_stream_that_is_not_whole(
    read: Read, serve: Any, latent: np.ndarray, reply: bytes, error: type[RemoteVAEError], count: int
) -> None:
    """It raises, after the blocks that came, and is not begun a second time."""
    server, blocks = serve(reply), list[np.ndarray]()
    with pytest.raises(error):
        read(server.url, latent, blocks)
    assert (len(blocks), len(server.seen)) == (count, 1)


def test_a_stream_that_stalls(read: Read, serve: Any, latent: np.ndarray) -> None:
    """The time-out is for all of it, however long a block takes."""
    server, blocks = serve(), list[np.ndarray]()
    whole = streamed(parts(), whole=False)
    server.acts.append(server.stall(whole[:-400]))
    with pytest.raises(ClientTimeout):
        read(server.url, latent, blocks, client={"timeout": 2.0})
    assert 0 < len(blocks) < 3


def test_a_stream_that_has_not_begun_is_tried_again(read: Read, serve: Any, answers: Any, latent: np.ndarray) -> None:
    """A server that hangs up or is not ready costs tries, as for decode; other errors are final."""
    server = serve(lambda connection: None, answers.error(503, "not_ready"), streamed(parts()))
    blocks: list[np.ndarray] = []
    read(server.url, latent, blocks)
    assert (len(blocks), len(server.seen)) == (3, 3)
    with pytest.raises(NotReady):
        read(serve(answers.error(503, "not_ready")).url, latent, blocks, client={"retries": 1})
    with pytest.raises(TooLarge):
        read(serve(answers.error(413, "too_large")).url, latent, blocks)


def test_a_block_above_the_limit(read: Read, serve: Any, latent: np.ndarray) -> None:
    """The limit on a reply is for each block, and a larger one is not collected."""
    blocks: list[np.ndarray] = []
    read(serve(streamed(parts())).url, latent, blocks, client={"max_reply_bytes": 96})
    with pytest.raises(InvalidReply, match="up to 95"):
        read(serve(streamed(parts())).url, latent, blocks, client={"max_reply_bytes": 95})
    assert len(blocks) == 3
