"""What the clients ask for, read by the protocol's own parser, and what they hand back."""

import inspect
import io
import json
import socket
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from remote_vae.client import AsyncClient, Client
from remote_vae.errors import InvalidReply, InvalidValue, MalformedRequest, Overloaded, UnknownModel, UnknownRoute
from remote_vae.protocol import wire
from remote_vae.protocol.options import ENCODE_ROWS
from remote_vae.values import FORMATS, Scaling, ScalingMode

MP4 = b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00" + b"\x00\x00\x00\x08moov"


def parse(seen):
    """The request as the server's own parser reads it."""
    path, _, query = seen.target.partition("?")
    head = wire.parse_head(path, query.encode(), seen.headers)
    return wire.parse_decode(head, seen.body) if head.operation == "decode" else wire.parse_encode(head, seen.body)


@pytest.mark.parametrize(
    ("given", "scaling"),
    [
        ({}, Scaling()),
        ({"do_scaling": True}, Scaling(ScalingMode.MODEL)),
        ({"scaling_factor": 0.5}, Scaling(ScalingMode.GIVEN, 0.5)),
        ({"scaling_factor": np.float32(0.5), "shift_factor": np.float64(0.25)}, Scaling(ScalingMode.GIVEN, 0.5, 0.25)),
        ({"shift_factor": 1, "do_scaling": True}, Scaling(ScalingMode.GIVEN, None, 1.0)),
        ({"scaling_factor": torch.tensor(0.5)}, Scaling(ScalingMode.GIVEN, 0.5)),
    ],
)
def test_scaling_is_what_was_asked(call, serve, answers, latent, given, scaling):
    """Given factors come before do_scaling, and nothing given means none, for decode and encode alike."""
    server = serve(answers.picture(), answers.tensor(latent))
    call(server.url, "decode", latent, **given)
    assert parse(server.seen[0]).scaling == scaling
    call(server.url, "encode", Image.new("RGB", (32, 32)), **given)
    assert parse(server.seen[1]).scaling == scaling


def test_decode_options_arrive(call, serve, answers):
    """Every option of a decode is read by the server as it was given."""
    server = serve(answers.picture((64, 48), "webp"))
    packed = np.ones((1, 12, 64), np.float16)
    call(
        server.url, "decode", packed, model="flux1", image_format="webp", quality=80, height=48, width=64, plan="strips"
    )
    found = parse(server.seen[0])
    assert found.model == "flux1"
    assert found.format is FORMATS["webp"]
    assert (found.options["image_format"], found.options["quality"]) == ("webp", 80)
    assert [found.options[name] for name in ("height", "width", "plan")] == [48, 64, "strips"]
    assert (found.latent.shape, found.latent.dtype) == ((1, 12, 64), "float16")
    assert bytes(found.latent.buffer) == packed.tobytes()


def test_encode_options_arrive(call, serve, answers):
    """Every option of an encode is read by the server as it was given."""
    server = serve(answers.tensor(np.zeros((1, 8, 4, 4), np.float32)))
    call(server.url, "encode", b"\x89PNG", model="sd1", posterior="parameters", seed=7, profile="ignore", plan="whole")
    found = parse(server.seen[0])
    assert found.model == "sd1"
    assert bytes(found.image) == b"\x89PNG"
    asked = {"posterior": "parameters", "seed": 7, "profile": "ignore", "plan": "whole"}
    assert found.options == {**dict.fromkeys(ENCODE_ROWS), **asked}


def test_picture_is_handed_over(call, serve, answers, latent):
    """A decode gives a PIL picture, as PNG unless told otherwise."""
    server = serve(answers.picture())
    picture = call(server.url, "decode", latent)
    assert (picture.size, picture.mode, picture.getpixel((3, 3))) == ((32, 32), "RGB", (200, 30, 60))
    assert parse(server.seen[0]).format is FORMATS["png"]


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_tensor_is_handed_over_in_the_callers_kind(call, serve, answers, latent, kind):
    """A tensor comes back as torch for a torch latent, bfloat16 too, and as numpy for a numpy one."""
    pixels = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float16)
    server = serve(answers.tensor(pixels))
    given = torch.zeros(1, 4, 4, 4, dtype=torch.bfloat16) if kind == "torch" else latent
    found = call(server.url, "decode", given, output_type="pt")
    assert isinstance(found, torch.Tensor if kind == "torch" else np.ndarray)
    assert np.array_equal(np.asarray(found), pixels)
    assert parse(server.seen[0]).options["output_type"] == "pt"


def test_uint8_pixels(call, serve, answers, latent):
    """partial_postprocess gives uint8 pixels, channels last."""
    pixels = np.arange(32 * 32 * 3).astype(np.uint8).reshape(1, 32, 32, 3)
    server = serve(answers.tensor(pixels))
    found = call(server.url, "decode", latent, output_type="pt", partial_postprocess=True)
    assert np.array_equal(found, pixels)


def test_video_is_handed_over_as_bytes(call, serve, answers):
    """output_type="mp4" gives the file's bytes."""
    server = serve(answers.http(200, MP4, content_type="video/mp4"))
    assert call(server.url, "decode", np.zeros((1, 16, 3, 4, 4), np.float16), output_type="mp4") == MP4


@pytest.mark.parametrize("kind", ["picture", "written", "torch", "numpy"])
def test_encode_gives_a_latent(call, serve, answers, latent, kind):
    """A picture, written or not, gives a numpy latent, and a tensor gives one of its own kind."""
    server = serve(answers.tensor(latent + 1))
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, format="WEBP")
    image = {
        "picture": Image.new("CMYK", (32, 32)),
        "written": buffer.getvalue(),
        "torch": torch.zeros(1, 3, 32, 32),
        "numpy": np.zeros((1, 3, 32, 32), np.float32),
    }[kind]
    found = call(server.url, "encode", image)
    assert isinstance(found, torch.Tensor if kind == "torch" else np.ndarray)
    assert np.array_equal(np.asarray(found), latent + 1)


def test_reply_has_its_provenance(call, serve, answers, latent, monkeypatch):
    """decode_reply and encode_reply give what came, with the headers that say how it came about."""
    monkeypatch.setattr("remote_vae.client.exchange.uuid.uuid4", lambda: SimpleNamespace(hex="r-9"))
    headers = {
        "x_request_id": "r-9",
        "x_model": "sd1",
        "x_model_revision": "abc",
        "x_plan": "whole",
        "x_dtype": "float16",
        "server_timing": "queue;dur=1.50, decode;dur=20.00",
    }
    server = serve(answers.picture(**headers), answers.tensor(latent, **headers))
    decoded = call(server.url, "decode_reply", latent)
    encoded = call(server.url, "encode_reply", b"\x89PNG")
    assert Image.open(io.BytesIO(decoded.payload)).size == (32, 32)
    assert encoded.payload.shape == latent.shape
    for reply in (decoded, encoded):
        found = reply.provenance
        assert (found.request_id, found.model, found.revision, found.plan) == ("r-9", "sd1", "abc", "whole")
        assert found.timings_ms == {"queue": 1.5, "decode": 20.0}


def test_reply_is_checked_too(call, serve, answers, latent):
    """decode_reply refuses what decode refuses."""
    server = serve(answers.picture((1024, 512)))
    with pytest.raises(InvalidReply):
        call(server.url, "decode_reply", latent)


def test_another_form_than_asked(call, serve, answers, latent):
    """A JPEG where a PNG was asked for, and a picture where a tensor was, are InvalidReplies."""
    server = serve(answers.picture(form="jpeg"))
    for options in ({}, {"output_type": "pt"}):
        with pytest.raises(InvalidReply, match="image/jpeg"):
            call(server.url, "decode", latent, **options)
    with pytest.raises(InvalidReply, match="image/jpeg"):
        call(server.url, "encode", b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "cls"),
    [
        ({"output_type": "jpg"}, InvalidValue),
        ({"image_format": "gif"}, InvalidValue),
        ({"quality": 0}, InvalidValue),
        ({"scaling_factor": float("nan")}, InvalidValue),
        ({"scaling_factor": 0}, InvalidValue),
        ({"height": 0, "width": 8}, InvalidValue),
        ({"height": 8.5, "width": 8}, MalformedRequest),
        ({"model": "../models"}, InvalidValue),
        ({"model": "a?b=c"}, InvalidValue),
        ({"scale": 1}, TypeError),
    ],
)
def test_wrong_options_are_refused_here(call, serve, answers, latent, options, cls):
    """What the server would refuse is refused before the latent is sent."""
    server = serve(answers.picture())
    with pytest.raises(cls):
        call(server.url, "decode", latent, **options)
    assert server.seen == []


def test_models_are_listed(call, serve, answers):
    """models() gives the cards of GET /models."""
    cards = [{"name": "sd1", "aliases": ["sd"]}, {"name": "flux1"}]
    server = serve(answers.http(200, json.dumps({"default": "sd1", "models": cards}).encode()))
    assert call(f"{server.url}/vae/", "models") == cards
    assert (server.seen[0].method, server.seen[0].target) == ("GET", "/vae/models")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"models": [{}]}', b'{"models": {}}', b"[" * 5000])
def test_models_of_something_else(call, serve, answers, body):
    """A list without models is an InvalidReply."""
    with pytest.raises(InvalidReply):
        call(serve(answers.http(200, body)).url, "models")


@pytest.mark.parametrize(("code", "cls"), [("unknown_route", UnknownRoute), ("unknown_model", UnknownModel)])
def test_models_of_a_server_that_refuses(call, serve, answers, code, cls):
    """An error on GET /models is raised as the class it names."""
    with pytest.raises(cls):
        call(serve(answers.error(404, code)).url, "models")


def test_ready(call, serve, answers):
    """ready() is True for 200, and False for 503 or for nobody there, each asked once."""
    server = serve(answers.http(200, b"{}"), answers.error(503, "not_ready"), lambda connection: None)
    assert [call(server.url, "ready") for _ in range(3)] == [True, False, False]
    assert [seen.target for seen in server.seen] == ["/ready"] * 3


def test_ready_of_something_else(call, serve, answers):
    """Another error than 503 is not an answer to whether the server is ready."""
    with pytest.raises(UnknownRoute):
        call(serve(answers.error(404, "unknown_route")).url, "ready")


def test_connection_is_kept_between_calls(serve, answers, latent):
    """Two calls of one client go over one connection."""
    whole = answers.picture(connection="keep-alive")

    def twice(connection: socket.socket) -> None:
        connection.sendall(whole)
        connection.recv(65536)
        connection.sendall(whole)

    server = serve(twice)
    with Client(server.url) as client:
        assert client.decode(latent).size == client.decode(latent).size
    assert len(server.seen) == 1


def test_injected_transport(latent):
    """Any httpx2 client can be injected, and is asked again like our own."""
    asked = []

    def respond(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.path)
        return httpx2.Response(503, json={"error": "busy", "error_type": "overloaded"})

    with httpx2.Client(transport=httpx2.MockTransport(respond)) as http, pytest.raises(Overloaded, match="busy"):
        Client("http://vae", http=http, retries=2).decode(latent, model="sd1")
    assert asked == ["/sd1/decode", "/sd1/decode"]


def test_sync_and_async_have_the_same_methods():
    """The two clients differ in `await` and in nothing else."""
    for name, method in vars(Client).items():
        if inspect.isfunction(method):
            twin = getattr(AsyncClient, {"__enter__": "__aenter__", "__exit__": "__aexit__"}.get(name, name))
            ours, theirs = inspect.signature(method).parameters, inspect.signature(twin).parameters
            assert list(ours) == list(theirs)
            assert [(p.kind, p.default) for p in ours.values()] == [(p.kind, p.default) for p in theirs.values()]
            if "Iterator" in str(inspect.signature(method).return_annotation):
                assert "AsyncIterator" in str(inspect.signature(twin).return_annotation)
            else:
                assert inspect.iscoroutinefunction(twin) == (name != "__init__")
