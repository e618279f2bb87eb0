"""Numbers of things: batches of any length, and seeds and ranges of their parts."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from remote_vae import AsyncClient, Client, remote_decode, remote_encode
from remote_vae.client.calls import decode_request, encode_request
from remote_vae.client.parts import joined, parts_of
from remote_vae.errors import TooLarge
from remote_vae.protocol.messages import Reply
from remote_vae.values import FORMATS, Tensor

ITEMS = 7
CARD: dict[str, Any] = {
    "latent_channels": 4,
    "spatial_compression_ratio": 8,
    "temporal_compression_ratio": 1,
    "latent_layouts": ["b c h w", "b (h w) (c i j)", "c h w", "1 b (h w) (c i j)"],
    "limits": {"max_batch": 3},
}


@pytest.fixture(scope="module")
def narrow(start: Any) -> Iterator[Any]:
    """A server of small limits: three at a time."""
    with start("copy", max_batch=3) as server:
        yield server


def by_client(url: str, method: str, *given: Any, **options: Any) -> Any:
    with Client(url) as client:
        return getattr(client, method)(*given, **options)


def by_async_client(url: str, method: str, *given: Any, **options: Any) -> Any:
    async def call() -> Any:
        async with AsyncClient(url) as client:
            return await getattr(client, method)(*given, **options)

    return asyncio.run(call())


def by_function(url: str, method: str, given: Any, **options: Any) -> Any:
    if method == "encode":
        return remote_encode(url, given)
    return remote_decode(
        url, given, return_type=options["output_type"], do_scaling=False, image_format="png", **options
    )


@pytest.mark.parametrize("call", [by_client, by_async_client, by_function])
@pytest.mark.parametrize("kind", ["numpy", "torch", "bfloat16"])
def test_a_batch_of_any_length(narrow: Any, call: Callable[..., Any], kind: str) -> None:
    """Seven of an animation go in three parts and come back as one, in order, both ways, in every client."""
    values = np.random.default_rng(1).random((ITEMS, 3, 8, 8), np.float32) - 0.5
    given: Any = values if kind == "numpy" else torch.from_numpy(values)
    given = given.bfloat16() if kind == "bfloat16" else given
    for method, options in (("decode", {"output_type": "pt"}), ("encode", {})):
        found = call(narrow.url, method, given, **options)
        assert type(found) is type(given)
        expected = given if isinstance(given, np.ndarray) else given.float().numpy()
        np.testing.assert_array_equal(np.asarray(found), expected)


def test_a_client_that_knows_the_limits_does_not_meet_them(narrow: Any) -> None:
    """After the first batch the server refuses nothing more, because the client sends parts at once."""
    batch = np.zeros((ITEMS, 3, 8, 8), np.float32)
    with Client(narrow.url) as client:
        client.decode(batch, output_type="pt")
        refused = requests_refused(narrow)
        client.decode(batch, output_type="pt")
        assert requests_refused(narrow) == refused > 0


def requests_refused(server: Any) -> float:
    import requests

    lines = requests.get(f"{server.url}/metrics", timeout=10).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if "requests_total" in line and '413"' in line)


@pytest.mark.parametrize("call", [by_client, by_async_client, by_function])
def test_the_picture_of_a_batch_is_its_first(narrow: Any, call: Callable[..., Any]) -> None:
    """A picture is that of the first latent, however many there are."""
    batch = np.full((ITEMS, 3, 8, 8), -1, np.float32)
    batch[0] = 1
    assert call(narrow.url, "decode", batch, output_type="pil").getpixel((3, 3)) == (255, 255, 255)


def test_pixels_keep_their_range(narrow: Any) -> None:
    """In a batch in [-1, 1] the bright pictures of one part are not taken for pictures in [0, 1]."""
    pixels = np.full((6, 3, 8, 8), 0.5, np.float32)
    pixels[0, 0, 0, 0] = -1
    found = by_client(narrow.url, "encode", pixels)
    np.testing.assert_allclose(found, pixels, atol=1e-6)


def test_limits_that_no_part_keeps(start: Any) -> None:
    """If one item alone is too large, the server's own refusal is raised."""
    with (
        start("copy", max_side=16) as server,
        pytest.raises(TooLarge, match="height would be 32; the limit here is 16"),
    ):
        by_client(server.url, "decode", np.zeros((2, 3, 32, 32), np.float32), output_type="pt")


@pytest.mark.parametrize(
    ("shape", "options", "limits", "sizes"),
    [
        ((7, 4, 8, 8), {"output_type": "pt"}, {"max_batch": 3}, [3, 3, 1]),
        ((7, 16, 16), {"output_type": "pt", "height": 64, "width": 64}, {"max_batch": 3}, [3, 3, 1]),
        ((4, 8, 8), {"output_type": "pt"}, {"max_batch": 3}, [4]),
        ((1, 7, 16, 16), {"output_type": "pt"}, {"max_batch": 3}, [1]),
        ((7, 4, 8, 8), {"output_type": "pt"}, {"max_batch": 8, "max_body_bytes": 2048}, [2, 2, 2, 1]),
        ((4, 4, 8, 8), {"output_type": "pt"}, {"max_reply_bytes": 4 * 4 * 64 * 64 * 2}, [2, 2]),
        ((7, 4, 8, 8), {"output_type": "pil"}, {"max_batch": 3}, [1]),
        ((7, 4, 8, 8), {"output_type": "pt"}, {}, [7]),
    ],
)
def test_parts_by_the_card(
    shape: tuple[int, ...], options: dict[str, Any], limits: dict[str, int], sizes: list[int]
) -> None:
    """Parts are as large as batch, body and reply allow; what has no batch axis is left whole."""
    latent = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    parts = parts_of(decode_request(latent, options), {**CARD, "limits": limits})
    assert [part.latent.shape[0] for part in parts] == sizes
    if sum(sizes) == shape[0]:
        replies = [Reply(part.latent, FORMATS["binary"]) for part in parts]
        whole = joined(replies).payload
        assert isinstance(whole, Tensor)
        assert (whole.shape, bytes(whole.buffer)) == (shape, latent.tobytes())


def test_seeds_of_parts() -> None:
    """Each part has other noise: its seed is the caller's and the number of items before it."""
    request = encode_request(np.zeros((7, 3, 64, 64), np.float32), {"posterior": "sample", "seed": 2**63 - 3})
    assert [part.options["seed"] for part in parts_of(request, CARD)] == [2**63 - 3, 0, 3]
    without = encode_request(np.zeros((7, 3, 64, 64), np.float32), {})
    assert [part.options["seed"] for part in parts_of(without, CARD)] == [None] * 3
