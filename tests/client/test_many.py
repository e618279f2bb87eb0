"""encode_many, decode_many and EncodeQueue: many items, bounded, in order or as each is done."""

import asyncio
import io
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from remote_vae import AsyncClient, AsyncEncodeQueue, Client, EncodeQueue
from remote_vae.client.aio_queue import Item
from remote_vae.errors import ConfigurationError, InvalidValue, UnsupportedMediaType


@pytest.fixture(scope="module")
def url(start: Any) -> Iterator[str]:
    with start("copy") as server:
        yield server.url


def picture(level: int, side: int = 16) -> Image.Image:
    return Image.new("RGB", (side, side), (level, level, level))


def written(level: int) -> bytes:
    buffer = io.BytesIO()
    picture(level).save(buffer, format="PNG")
    return buffer.getvalue()


def level_of(item: Item) -> int:
    """The level of the picture that the server, which only scales, made a latent of."""
    return round((float(item.result().flat[0]) + 1) * 127.5)


def collected(client: Any, method: str, items: Any, **options: Any) -> list[Item]:
    """All items, of either client."""
    found = getattr(client, method)(items, **options)
    if isinstance(client, Client):
        return list(found)

    async def collect() -> list[Item]:
        return [item async for item in getattr(client, method)(items, **options)]

    return asyncio.run(collect())


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_latents(url: str, kind: Any) -> None:
    """decode_many gives what decode gives, with its options."""
    latents = [np.full((1, 3, 4, 4), n / 8, np.float32) for n in range(5)]
    found = collected(kind(url), "decode_many", latents, in_flight=2, output_type="pt")
    assert [item.result().flat[0] for item in found] == [n / 8 for n in range(5)]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_pictures_of_every_kind_in_order(url: str, kind: Any) -> None:
    """PIL images, written pictures, tensors and functions become latents, numbered and in order."""
    kinds = [
        picture(10),
        written(20),
        lambda: picture(30),
        lambda: written(40),
        np.full((1, 16, 16, 3), 50, np.uint8),
        torch.full((1, 16, 16, 3), 60, dtype=torch.uint8),
    ]
    found = collected(kind(url), "encode_many", kinds, in_flight=3, posterior="mode")
    assert [item.index for item in found] == list(range(6))
    assert isinstance(found[5].value, torch.Tensor)
    found[5] = Item(5, found[5].value.numpy())
    assert [level_of(item) for item in found] == [10, 20, 30, 40, 50, 60]


def test_as_each_is_done(url: str) -> None:
    """Without an order an item that is done comes before an earlier one that is not."""
    gate = threading.Event()

    def slow() -> Image.Image:
        assert gate.wait(20)
        return picture(1)

    found = Client(url).encode_many([slow, picture(2), picture(3)], ordered=False, posterior="mode")
    early = [next(found), next(found)]
    gate.set()
    assert sorted(item.index for item in early) == [1, 2]
    assert [item.index for item in found] == [0]

    async def awaited() -> list[int]:
        gate.clear()
        async with AsyncClient(url) as client:
            indices = []
            async for item in client.encode_many([slow, picture(2)], ordered=False, posterior="mode"):
                indices.append(item.index)
                gate.set()
            return indices

    assert asyncio.run(awaited()) == [1, 0]


def test_a_bad_picture_is_its_own_error(url: str, tmp_path: Path) -> None:
    """A picture that cannot be read stays in its place as an error, and the others go on."""
    cut = Image.open(io.BytesIO(written(7)[:60]))
    images = [picture(1), b"no picture", cut, (tmp_path / "missing.png").read_bytes, picture(2)]
    found = list(Client(url).encode_many(images, posterior="mode"))
    assert [type(item.error) for item in found][1::2] == [UnsupportedMediaType, FileNotFoundError]
    assert isinstance(found[2].error, OSError)
    assert [level_of(found[n]) for n in (0, 4)] == [1, 2]


def test_no_more_is_read_than_is_under_way(url: str) -> None:
    """The iterable is asked for four times `in_flight` items, and for no more while nothing is taken."""
    asked: list[int] = []
    images = (asked.append(n) or picture(n) for n in range(50))  # type: ignore[func-returns-value]
    found = Client(url).encode_many(images, in_flight=2, posterior="mode")
    assert level_of(next(found)) == 0
    assert len(asked) <= 9
    found.close()  # type: ignore[attr-defined]
    assert len(asked) <= 9


def test_functions_run_side_by_side(url: str) -> None:
    """Two files are read at the same time, so a slow disk is not waited for file by file."""
    both = threading.Barrier(2, timeout=20)

    def read() -> Image.Image:
        both.wait()
        return picture(9)

    assert [level_of(item) for item in Client(url).encode_many([read, read], in_flight=1, posterior="mode")] == [9, 9]


def test_the_server_may_be_restarted(start: Any) -> None:
    """Items that the killed server had are sent again to the next one, and none is lost or given twice."""
    with start("copy") as server:
        port = server.url.rpartition(":")[2]
        images = (picture(n) for n in range(40))
        found = Client(server.url, timeout=120).encode_many(images, posterior="mode")
        first = [next(found) for _ in range(5)]
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    with start("copy", port=port):
        levels = [level_of(item) for item in (*first, *found)]
    assert levels == list(range(40))


def test_an_encode_queue(url: str) -> None:
    """EncodeQueue gives futures, items in order and calls, as DecodeQueue does, with options of each put."""
    seen: list[Item] = []
    with EncodeQueue(url, posterior="mode", on_done=seen.append) as queue:
        doubled = queue.put(picture(3), scaling_factor=2.0).result(20) / 2
        assert level_of(Item(0, doubled)) == 3
        assert [level_of(item) for item in queue.map(picture(n) for n in (4, 5))] == [4, 5]
    assert [item.index for item in seen] == [0, 1, 2]

    async def awaited() -> list[int]:
        async with AsyncEncodeQueue(url, posterior="mode") as waiting:
            task = await waiting.put(written(6))
            levels = [level_of(item) async for item in waiting.map([written(7)])]
            return [level_of(Item(0, await task)), *levels]

    assert asyncio.run(awaited()) == [6, 7]


def test_what_is_refused_at_once() -> None:
    """No lane, or connections that belong to the caller, are refused in a sentence."""
    with pytest.raises(InvalidValue, match="in_flight=0 must be at least 1"):
        Client("http://127.0.0.1:1").encode_many([], in_flight=0)
    with httpx2.Client() as http, pytest.raises(ConfigurationError, match="without an injected http"):
        Client("http://127.0.0.1:1", http=http).decode_many([])
