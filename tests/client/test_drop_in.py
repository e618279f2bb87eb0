"""RemoteVAE when something is wrong: what happened, and what to do; the fallback only when no answer comes."""

import json
import socket
import struct
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from remote_vae import DecodeQueue, RemoteVAE
from remote_vae.errors import (
    ConfigurationError,
    ConnectionFailed,
    InternalError,
    InvalidReply,
    InvalidValue,
    Unauthorized,
    UnknownModel,
)

TINY: dict[str, Any] = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4}
LATENT = torch.zeros(1, 4, 6, 8)


@pytest.fixture(scope="module")
def local() -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(**TINY).eval()


@pytest.fixture
def gone() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def cards(answers: Any) -> bytes:
    """The answer to GET /models of a server with one model."""
    config = {"_class_name": "AutoencoderKL", "block_out_channels": [8], "latent_channels": 4, "scaling_factor": 0.3}
    card = {"name": "sd", "aliases": ["sd15"], "kind": "image", "latent_channels": 4, "config": config}
    card |= {"spatial_compression_ratio": 1, "temporal_compression_ratio": 1, "latent_layouts": ["b c h w"]}
    card |= {"deterministic": False, "normalised": False}
    return answers.http(200, json.dumps({"models": [card]}).encode(), content_type="application/json")


def test_a_server_that_cannot_be_reached(gone: str) -> None:
    """Without a server RemoteVAE is not made, and the error names the host."""
    with pytest.raises(ConnectionFailed, match=f"the connection to {gone[7:]} failed"):
        RemoteVAE(f"{gone}/sd")


def test_a_wrong_key(start: Any) -> None:
    """A server with keys refuses another one, and none, with what to do; the right one is let in."""
    with start("copy", keys="the-right-key-0123456") as server:
        for token in ("a-wrong-key-012345678", None):
            with pytest.raises(Unauthorized, match="key"):
                RemoteVAE(server.url, token=token)
        with RemoteVAE(server.url, token="the-right-key-0123456", model="copy") as vae:
            assert vae.config.model == "copy"


def test_a_model_that_is_not_served(serve: Any, cards: bytes) -> None:
    """The error names the models that there are."""
    with pytest.raises(UnknownModel, match=r"'sdxl' is not served at http://127.0.0.1:\d+; served are sd"):
        RemoteVAE(f"{serve(cards).url}/sdxl")


@pytest.mark.parametrize(
    ("path", "model"), [("", None), ("/", None), ("/sd", None), ("/sd/", None), ("/SD15/decode", None), ("", "sd15")]
)
def test_ways_to_name_a_model(serve: Any, cards: bytes, path: str, model: str | None) -> None:
    """The model is the last part of the URL, or `model`, by name or alias; without one it is the first."""
    server = serve(cards)
    vae = RemoteVAE(server.url + path, model=model)
    assert vae.config.scaling_factor == 0.3
    assert [seen.target for seen in server.seen] == ["/models"]
    vae.close()


def test_a_server_of_another_kind(serve: Any, answers: Any) -> None:
    """A page of some other server is told from a list of models."""
    with pytest.raises(InvalidReply, match="is this a remote-vae server"):
        RemoteVAE(serve(answers.http(200, b"<html>", content_type="text/html")).url)


def test_the_fallback_works_without_a_server(gone: str, local: AutoencoderKL) -> None:
    """With a fallback everything goes on locally, and every time a warning says so."""
    with pytest.warns(RuntimeWarning, match="failed.*; the fallback, a local VAE, is used instead"):
        vae = RemoteVAE(f"{gone}/sd", fallback=local)
    assert vae.config.scaling_factor == local.config.scaling_factor
    pixels = torch.rand(1, 3, 8, 8) * 2 - 1
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="fallback") as said:  # noqa: PT031  # both ways
        assert torch.equal(vae.decode(LATENT).sample, local.decode(LATENT).sample)
        expected = local.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(3))
        found = vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(3))
    assert torch.equal(found, expected)
    assert {warning.filename for warning in said} == {__file__}
    assert vae.num_parameters() == 0


def test_the_fallback_takes_over_and_hands_back(serve: Any, answers: Any, cards: bytes, local: AutoencoderKL) -> None:
    """A server lost on the way is replaced for as long as it is away, and asked again the next time."""
    picture = torch.full((1, 3, 6, 8), 0.25)
    hang_up = [lambda connection: None] * 3
    server = serve(cards, *hang_up, answers.tensor(picture.numpy()))
    vae = RemoteVAE(f"{server.url}/sd", fallback=local)
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="fallback"):
        assert torch.equal(vae.decode(LATENT).sample, local.decode(LATENT).sample)
    assert torch.equal(vae.decode(LATENT).sample, picture)


def test_no_fallback_for_an_answer(serve: Any, answers: Any, cards: bytes, local: AutoencoderKL) -> None:
    """What a server answers, an error too, is raised; the fallback is for when no answer comes."""
    server = serve(cards, answers.error(500, "internal_error"))
    vae = RemoteVAE(f"{server.url}/sd", fallback=local)
    with pytest.raises(InternalError):
        vae.decode(LATENT)


@pytest.mark.parametrize(
    "other", [AutoencoderKL(**{**TINY, "latent_channels": 16}), AutoencoderTiny()], ids=["channels", "class"]
)
def test_a_fallback_of_another_model(serve: Any, cards: bytes, other: torch.nn.Module) -> None:
    """A fallback that would give other pictures is refused when the server is met, with what differs."""
    words = r"Autoencoder\w+ with \d+ latent channels, does not do for .* AutoencoderKL with 4"
    with pytest.raises(InvalidValue, match=words):
        RemoteVAE(serve(cards).url, fallback=other)


def test_loading_what_is_no_remote_vae(local: AutoencoderKL, tmp_path: Any) -> None:
    """`from_pretrained` with the folder of weights says what to do with weights."""
    local.save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=r"holds a AutoencoderKL.*remote-vae serve"):
        RemoteVAE.from_pretrained(tmp_path)


def reset(connection: socket.socket) -> None:
    """Reads a little of the upload and drops the connection."""
    connection.recv(1000)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_a_connection_lost_during_an_upload(serve: Any, cards: bytes) -> None:
    """An upload that breaks off is tried again and then is a ConnectionFailed with the host, here and in a queue."""
    server, large = serve(cards, reset), torch.zeros(1, 4, 512, 512)
    vae = RemoteVAE(server.url)
    server.reads = False
    with pytest.raises(ConnectionFailed, match=f"the connection to {server.host} failed"):
        vae.decode(large)
    with DecodeQueue(server.url, timeout=0.3) as queue:
        (item,) = queue.map([large])
    assert isinstance(item.error, ConnectionFailed)
    assert server.host in item.error.message


@pytest.mark.parametrize(("limits", "parts"), [({"max_batch": 3}, 3), ({"max_reply_bytes": 2_400}, 4), ({}, 1)])
def test_a_batch_of_any_size(start: Any, limits: dict[str, int], parts: int) -> None:
    """A batch that is larger than the server's limits goes in parts, and comes back as one, in order."""
    batch = torch.rand(7, 3, 8, 8) - 0.5
    with start("copy", log_requests=True, **limits) as server, RemoteVAE(server.url, model="copy") as vae:
        torch.testing.assert_close(vae.decode(batch).sample, batch, atol=0, rtol=0)
        server.wait_until(lambda: server.log.read_text().count('"decode"') >= parts, seconds=60)
        assert server.log.read_text().count('"decode"') == parts
